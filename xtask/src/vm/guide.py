"""Follows a guide in Markdown to the letter: `guide.py FILE` runs its commands and writes its files, in order.

A block whose first line is a comment with an absolute path is that file. A block without a language is commands, one a
line; what follows `# N:` at a line's end says that exit code N is expected, and a command that follows (`-f`) is ended
after some seconds, as a reader would. Anything else that fails ends the run and says which line of the guide it was.
"""

import pathlib
import re
import subprocess
import sys

FENCE = "```"
PATIENCE = 120
FOLLOWED = 5


def blocks(text):
    language, first, lines = None, 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith(FENCE):
            lines.append(line)
        elif language is None:
            language, first, lines = line[len(FENCE):].strip(), number + 1, []
        else:
            yield language, first, lines
            language = None


def write(path, lines):
    print(f"wrote {path}", flush=True)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text("\n".join(lines) + "\n")


def run(line, number):
    command, _, note = line.partition(" # ")
    expected = re.match(r"\s*(\d+):", note)
    expected = int(expected[1]) if expected else 0
    print(f"$ {command.strip()}", flush=True)
    follows = re.search(r"(^|\s)-f(\s|$)", command)
    # 124 is what timeout(1) says of a command that it ended.
    wanted = 124 if follows else expected
    seconds = FOLLOWED if follows else PATIENCE
    code = subprocess.run(["timeout", str(seconds), "bash", "-c", command], stdin=subprocess.DEVNULL).returncode
    if code != wanted:
        sys.exit(f"line {number}: `{command.strip()}` ended with {code} instead of {wanted}")


def main():
    commands = 0
    for language, first, lines in blocks(pathlib.Path(sys.argv[1]).read_text()):
        named = re.match(r"(?:#|//) (/\S+)$", lines[0]) if lines else None
        if named:
            write(named[1], lines)
        elif not language:
            for number, line in enumerate(lines, first):
                run(line, number)
                commands += 1
    print(f"{commands} commands")
    if commands < 10:
        sys.exit("the guide has hardly any commands: were they found?")


main()
