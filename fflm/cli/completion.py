"""`fflm completion`: completion of commands and options in a shell."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script with which SHELL completes the commands and options of fflm.

    \b
    Write it to a file that the shell reads when it starts:
      bash  fflm completion bash > ~/.local/share/bash-completion/completions/fflm
      zsh   fflm completion zsh > FOLDER/_fflm, FOLDER being one of $fpath
      fish  fflm completion fish > ~/.config/fish/completions/fflm.fish

    \b
    Example:
      eval "$(fflm completion bash)"
    """
    from fflm.cli import main

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(main, {}, "fflm", "_FFLM_COMPLETE").source())
