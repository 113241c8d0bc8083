"""Published BN-Inception weights and where they are, or were, to be had.

None of them is ours, and none was opened while this table was made: addresses, names and accuracies are what their
projects say. A hash in the name of a file is the beginning of its sha256. ``tvnet weights fetch`` takes a file whose
full sha256 is not known only with ``--trust``.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from tvnet_cli.options import Stream

_TSN = "https://yjxiong.blob.core.windows.net"
_LIP6 = "http://data.lip6.fr/cadene/pretrainedmodels"
_MMACTION = "https://open-mmlab.s3.ap-northeast-2.amazonaws.com"
_EPIC = "https://data.bris.ac.uk/datasets/2tw6gdvmfj3f12papdy24flvmo"
_CONVERTED = "https://raw.githubusercontent.com/shuangshuangguo/caffe2pytorch-tsn/master/model"

_UNSURE = "whether its host still answers is not known"
_DEAD = "the bucket was deleted, and its maintainers name no other place"
_BROWSER = "needs a browser: download it there, then tvnet weights import FILE"


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One published file.

    Attributes
    ----------
    name : str
        By which it is fetched.
    stream : {"flow", "rgb"}
    file : str
        Its name; a hash in it is compared.
    urls : tuple of str
        Tried in turn; none where only a browser gets it.
    source, training_data, licence : str
        For the card.
    sha256 : str
        The full hash, or nothing where it is not known.
    git_blob : str
        The beginning of the id that git gives its content, where it lies in a repository.
    dead : bool
        Known to be gone; a mirror may still have it.
    note : str
        What people should know before they try.
    """

    name: str
    stream: Stream
    file: str
    urls: tuple[str, ...]
    source: str
    training_data: str
    licence: str = "unknown: the project names none for its weights"
    sha256: str = ""
    git_blob: str = ""
    dead: bool = False
    note: str = ""

    @property
    def state(self) -> str:
        """How it can be had: fetchable, browser or dead."""
        return "dead" if self.dead else "fetchable" if self.urls else "browser"

    def summary(self) -> dict[str, Any]:
        """What is known of it as plain values, ready for JSON."""
        known = {**asdict(self), "state": self.state, "urls": list(self.urls)}
        return {key: value for key, value in known.items() if value not in ("", False)}

    @property
    def sha256_prefix(self) -> str:
        """As much of the sha256 as is known."""
        in_name = re.search(r"-([0-9a-f]{8,64})\.(?:pth|pt)", self.file)
        return self.sha256 or (in_name[1] if in_name else "")


def _converted(data: str, stream: Stream, git_blob: str, accuracy: str) -> PublishedWeights:
    file = f"{data.lower()}_{stream}.pth"
    return PublishedWeights(
        name=f"tsn-{data.lower()}-{stream}",
        stream=stream,
        file=file,
        urls=(f"{_CONVERTED}/{file}",),
        source=f"TSN {data} {stream}, Caffe reference model converted by shuangshuangguo/caffe2pytorch-tsn",
        training_data=data,
        licence="unknown: the repository has no licence; TSN's own is BSD-2-Clause",
        git_blob=git_blob,
        note=f"{accuracy}lies in a git repository: the likeliest to be there",
    )


def _reference(data: str, split: int, stream: Stream) -> PublishedWeights:
    file = f"{data.lower()}_split_{split}_tsn_{stream}_reference_bn_inception.caffemodel.v5"
    return PublishedWeights(
        name=f"tsn-caffe-{data.lower()}-split{split}-{stream}",
        stream=stream,
        file=file,
        urls=(f"{_TSN}/tsn-reference-models/{file}",),
        source=f"TSN reference model, {data} split {split}, {stream}",
        training_data=f"{data} split {split}, from ImageNet",
        note=_UNSURE,
    )


def _init(stream: Stream, what: str, file: str, data: str) -> PublishedWeights:
    return PublishedWeights(
        name=f"ssn-{what}-{stream}",
        stream=stream,
        file=file,
        urls=(f"{_TSN}/ssn-models/{file}",),
        source=f"SSN initialisation, {what}, {stream}",
        training_data=data,
        note=_UNSURE,
    )


_ALL = [
    PublishedWeights(
        name="cadene-imagenet",
        stream="rgb",
        file="bn_inception-52deb4733.pth",
        urls=(f"{_LIP6}/bn_inception-52deb4733.pth",),
        source="Cadene pretrained-models, BN-Inception",
        training_data="ImageNet",
        sha256="52deb473314542a5c2f87e9e6f26f4ca42fe863d15f986414dbae8c2dfdd2353",
        note=_UNSURE,
    ),
    PublishedWeights(
        name="cadene-imagenet-2018",
        stream="rgb",
        file="bn_inception-239d2248.pth",
        urls=(f"{_LIP6}/bn_inception-239d2248.pth",),
        source="Cadene pretrained-models, BN-Inception until October 2018",
        training_data="ImageNet",
        note=_UNSURE,
    ),
    PublishedWeights(
        name="tsn-pytorch-imagenet",
        stream="rgb",
        file="bn_inception-9f5701afb96c8044.pth",
        urls=(f"{_TSN}/models/bn_inception-9f5701afb96c8044.pth",),
        source="tsn-pytorch, BN-Inception",
        training_data="ImageNet",
        note=_UNSURE,
    ),
    _converted("UCF101", "flow", "7a84bcc6", "87.70 % on UCF101 split 1; "),
    _converted("UCF101", "rgb", "042da1fe", "86.01 % on UCF101 split 1; "),
    _converted("HMDB51", "flow", "30dcefb6", "63.53 % on HMDB51; "),
    _converted("HMDB51", "rgb", "a7fc34d7", "54.90 % on HMDB51; "),
    _converted("Kinetics", "flow", "83d463c7", ""),
    _converted("Kinetics", "rgb", "eabc56e7", ""),
    *(
        _reference(data, split, stream)
        for data in ("UCF101", "HMDB51")
        for stream in ("flow", "rgb")
        for split in (1, 2, 3)
    ),
    *(
        PublishedWeights(
            name=f"tsn-caffe-init-{stream}",
            stream=stream,
            file=f"bn_inception_{stream}_init.caffemodel",
            urls=(f"{_TSN}/tsn-init/bn_inception_{stream}_init.caffemodel",),
            source=f"TSN initialisation, {stream}",
            training_data="ImageNet",
            note=_UNSURE,
        )
        for stream in ("flow", "rgb")
    ),
    _init("rgb", "kinetics", "bninception_rgb_kinetics_init-d4ee618d3399.pth", "Kinetics"),
    _init("flow", "kinetics", "bninception_flow_kinetics_init-1410c1ccb470.pth", "Kinetics"),
    _init("flow", "thumos", "bninception_thumos_flow_init-89dfeaf803e.pth", "THUMOS14"),
    _init("flow", "activitynet", "bninception_activitynet1.2_flow_init-0090e716bd1563.pth", "ActivityNet 1.2"),
    PublishedWeights(
        name="ssn-thumos14-flow",
        stream="flow",
        file="ssn_reference_thumos14_bninception_flow-dfe7aba61375.pth.tar",
        urls=(f"{_TSN}/ssn-reference-models/ssn_reference_thumos14_bninception_flow-dfe7aba61375.pth.tar",),
        source="SSN reference model, THUMOS14, flow",
        training_data="THUMOS14",
        note=_UNSURE,
    ),
    PublishedWeights(
        name="mmaction-ucf101-flow",
        stream="flow",
        file="tsn_2d_flow_bninception_seg3_f1s1_b32_g8-151870b7.pth",
        urls=(f"{_MMACTION}/mmaction/models/ucf101/tsn_2d_flow_bninception_seg3_f1s1_b32_g8-151870b7.pth",),
        source="mmaction, TSN UCF101 flow",
        training_data="UCF101, from ImageNet",
        dead=True,
        note=f"87.7 % on UCF101; {_DEAD}",
    ),
    PublishedWeights(
        name="mmaction-ucf101-rgb",
        stream="rgb",
        file="tsn_2d_rgb_bninception_seg3_f1s1_b32_g8-98160339.pth",
        urls=(f"{_MMACTION}/mmaction/models/ucf101/tsn_2d_rgb_bninception_seg3_f1s1_b32_g8-98160339.pth",),
        source="mmaction, TSN UCF101 RGB",
        training_data="UCF101, from ImageNet",
        dead=True,
        note=f"86.4 % on UCF101; {_DEAD}",
    ),
    PublishedWeights(
        name="mmaction-imagenet",
        stream="rgb",
        file="bn_inception_caffe-ed2e8665.pth",
        urls=(f"{_MMACTION}/pretrain/third_party/bn_inception_caffe-ed2e8665.pth",),
        source="mmaction, BN-Inception of Caffe",
        training_data="ImageNet",
        dead=True,
        note=_DEAD,
    ),
    PublishedWeights(
        name="epic-tsn-flow",
        stream="flow",
        file="TSN_arch=BNInception_modality=Flow_segments=8-4c720ee3.pth.tar",
        urls=(f"{_EPIC}/TSN_arch=BNInception_modality=Flow_segments=8-4c720ee3.pth.tar",),
        source="EPIC Kitchens 55 action models, TSN flow",
        training_data="EPIC Kitchens 55",
    ),
    PublishedWeights(
        name="epic-tsn-rgb",
        stream="rgb",
        file="TSN_arch=BNInception_modality=RGB_segments=8-efb96e64.pth.tar",
        urls=(f"{_EPIC}/TSN_arch=BNInception_modality=RGB_segments=8-efb96e64.pth.tar",),
        source="EPIC Kitchens 55 action models, TSN RGB",
        training_data="EPIC Kitchens 55",
    ),
    PublishedWeights(
        name="tbn-kinetics-flow",
        stream="flow",
        file="kinetics_tsn_flow.pth.tar",
        urls=(),
        source="TBN, TSN Kinetics flow (Google Drive, id 1vO_vALz8HXifZaEgtLBvtEq869AKf6kc)",
        training_data="Kinetics",
        note=_BROWSER,
    ),
    PublishedWeights(
        name="tsm-imagenet",
        stream="rgb",
        file="BNInception-9baff57459f5a1744.pth",
        urls=("https://www.dropbox.com/s/3cvod6kzwluijcw/BNInception-9baff57459f5a1744.pth?dl=1",),
        source="TSM, BN-Inception",
        training_data="ImageNet",
    ),
    PublishedWeights(
        name="tsm-kinetics-rgb",
        stream="rgb",
        file="BNInceptionKinetics-47f0695e.pth",
        urls=("https://www.dropbox.com/s/gx4u7itoyygix0c/BNInceptionKinetics-47f0695e.pth?dl=1",),
        source="TSM, BN-Inception Kinetics",
        training_data="Kinetics",
    ),
]
PUBLISHED: dict[str, PublishedWeights] = {weights.name: weights for weights in _ALL}
