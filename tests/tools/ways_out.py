"""The ways out that a message of the kit names, as commands to paste."""

import contextlib
import re
import shlex


def error_line(output: str) -> str:
    return next((line for line in output.splitlines() if line.startswith("error: ")), output.strip()[-300:])


def ways_out(message: str, script: str, argv: list[str], places: dict[str, str]) -> list[tuple[str, list[str]]]:
    """The commands that a message names: whole ones, else flags to add to or to leave out of the same command.

    `places`: what a user writes in place of NEW_FOLDER and DATA.
    """
    commands = []
    for match in re.finditer(r"python (\w+)\.py ", message):
        rest = message[match.end() :]
        end = re.search(r" {2,}|; |, (?=or|which)| \((?=\w+ )| (?:or|to|and|for|which) |[.:;,]?$|\. ", rest)
        text = rest[: end.start()] if end else rest
        with contextlib.suppress(ValueError):
            words = [places.get(word, word) for word in shlex.split(text)]
            commands.append((match.group(1), words))
    if commands:
        return commands
    plain = [word for word in argv if word.partition("=")[0] not in ("--restart", "--resume", "--accept", "--until")]
    if match := re.search(r"leave --(\w+) out|leave it out|set \w+ instead", message):
        flag = match.group(1) or next(iter(re.findall(r"--(\w+)", message)), "")
        commands.append((script, [word for word in argv if word.partition("=")[0] != f"--{flag}"]))
    for flag in re.findall(r"--(?:restart|trust|code (?:folder|tree)|accept \w+)\b", message):
        commands.append((script if flag != "--restart" else "train", [*plain, *flag.split()]))
    if not commands and re.search(r"bring (it|that)", message):
        commands.append(("train", [*plain, "--restart"]))
    return commands
