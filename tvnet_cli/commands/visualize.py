"""`tvnet visualize`."""

from __future__ import annotations

import click


@click.group()
def visualize() -> None:
    """Pictures of what the networks see."""
