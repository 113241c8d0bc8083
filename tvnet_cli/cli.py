"""The command line: all commands under one name."""

from __future__ import annotations

from typing import Any

import click

from tvnet_cli import __version__
from tvnet_cli.commands.aslan_eval import aslan_eval
from tvnet_cli.commands.bench import bench
from tvnet_cli.commands.completion import completion
from tvnet_cli.commands.doctor import doctor
from tvnet_cli.commands.features import features
from tvnet_cli.commands.flow import flow
from tvnet_cli.commands.merge import merge
from tvnet_cli.commands.train import train
from tvnet_cli.commands.verify import verify
from tvnet_cli.commands.visualize import visualize
from tvnet_cli.commands.weights import weights
from tvnet_cli.terminal import printable_streams


class Program(click.Group):
    """All commands, whose text leaves through streams that let nothing steer a terminal."""

    def main(self, *arguments: Any, **more: Any) -> Any:
        """Run a command; results, errors of usage and tracebacks are printable."""
        with printable_streams():
            return super().main(*arguments, **more)


# Else click takes escape sequences out where there is no terminal, and names would differ from what they are.
SETTINGS = {"help_option_names": ["-h", "--help"], "color": True}


@click.group(cls=Program, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="tvnet")
def main() -> None:
    """Motion features and optical flow from videos, with TVNet."""


for command in (features, merge, verify, flow, aslan_eval, train, visualize, weights, bench, doctor, completion):
    main.add_command(command)
