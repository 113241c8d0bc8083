"""tvnet: motion features and optical flow from videos.

``TVNet`` and ``optical_flow`` are imported on first use, so that ``import tvnet_cli`` and ``tvnet --help`` need no
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvnet_cli.flow.compute import optical_flow as optical_flow
    from tvnet_cli.flow.tvnet import TVNet as TVNet

__version__ = "0.1.0"
__all__ = ["TVNet", "__version__", "optical_flow"]


def __getattr__(name: str) -> object:
    if name == "TVNet":
        from tvnet_cli.flow.tvnet import TVNet

        return TVNet
    if name == "optical_flow":
        from tvnet_cli.flow.compute import optical_flow

        return optical_flow
    raise AttributeError(f"module 'tvnet_cli' has no attribute {name!r}")
