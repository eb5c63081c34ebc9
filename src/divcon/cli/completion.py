"""``divcon completion``."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from divcon.cli.app import app, console

Shell = Literal["bash", "zsh", "fish"]


@app.command
def completion(shell: Shell, *, install: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Print the script that completes divcon's commands and flags in your shell, or install it.

    divcon completion bash --install

    source <(divcon completion bash)

    Parameters
    ----------
    shell
        Your shell.
    install
        Write the script to where the shell looks for it, and add a line to its startup file if it needs one (bash and
        zsh do).
    """
    script = completion_script(shell)
    if install:
        path = app.install_completion(shell=shell)
        path.write_text(script, encoding="utf-8")
        console.print(f"{path}\nStart a new shell to use it.")
    else:
        sys.stdout.write(script)


def completion_script(shell: Shell) -> str:
    """The script that completes divcon's command line in a shell."""
    script = app.generate_completion(shell=shell)
    if shell != "bash":
        return script
    # cyclopts takes every word that names some command for a command, `demo` in `divcon train demo` too: only the first
    # word is one, and the second below a command that has commands.
    commands = {name: below.resolved_commands() for name, below in app.resolved_commands().items()}
    groups = " ".join(name for name, below in commands.items() if any(not word.startswith("-") for word in below))
    known = '[[ " $all_commands " =~ " $word " ]]'
    first = f'[[ ${{#cmd_path[@]}} -eq 0 || ( ${{#cmd_path[@]}} -eq 1 && " {groups} " =~ " ${{cmd_path[0]}} " ) ]]'
    return script.replace(f"if {known}", f"if {first} && {known}")
