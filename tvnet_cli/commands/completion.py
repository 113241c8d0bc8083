"""`tvnet completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM, VARIABLE = "tvnet", "_TVNET_COMPLETE"  # the variable is the one that click looks at


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options, choices and names of weights.

    \b
    bash  add to ~/.bashrc:  eval "$(tvnet completion bash)"
    zsh   add to ~/.zshrc, after compinit:  eval "$(tvnet completion zsh)"
    fish  tvnet completion fish > ~/.config/fish/completions/tvnet.fish
    """  # noqa: D301 - click looks for the character itself
    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(context.find_root().command, {}, PROGRAM, VARIABLE).source())
