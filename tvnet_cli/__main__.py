"""``python -m tvnet_cli``."""

from tvnet_cli.cli import main

main(prog_name="tvnet")
