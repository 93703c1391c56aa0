"""`ecstruct recall`: how a model recalls facts, and whether finetuning changed that."""

from ecstruct.cli.command import command


@command("recall")
def recall() -> None:
    """Attention knockout, subject enrichment and attribute extraction; writes arrays and report.html.

    Prompts need a subject. With --after, both models side by side, and beside their extractive scores.
    Goes on where it was stopped.
    """
