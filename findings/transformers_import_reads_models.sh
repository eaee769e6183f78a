#!/usr/bin/env bash
# transformers: importing the package reads the source of every model it has, and AutoTokenizer reads them a second time.
#
# Versions: transformers 5.23.0
# Guess:    the package is lazy: `from transformers import AutoTokenizer` opens the modules that a tokenizer needs, some fifty files.
# Seen:     define_import_structure goes through models/ file by file, in transformers/__init__.py and again in models/__init__.py, and
#           reads each line by line for its __all__: over 1,500 files each time, more than half of the processor time of the import.
# Effect:   a second or two before the first token, in every process, also without torch; and a package on a network file system takes
#           thousands of round trips. Import it in one process that lives on, beside other work. Talaria compares its rows in such a one.
source "$(dirname "$0")/install.sh" transformers==5.23.0
cat > count.py <<'PY'
import sys

read = []


def note(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], str) and "/transformers/models/" in arguments[0] and arguments[0].endswith(".py"):
        read.append(arguments[0])


sys.addaudithook(note)
from transformers import AutoTokenizer  # noqa: F401

loaded = [name for name in sys.modules if name.startswith("transformers.models.")]
print(len(read), len(set(read)), len(loaded))
PY
read -r opened different loaded < <(venv/bin/python count.py 2>log.txt || tail log.txt)
echo "files of models/ opened: $opened, different ones: $different, modules of models/ loaded: $loaded"
[ "$different" -gt 1500 ]
[ "$opened" -ge $((2 * different)) ]
[ "$loaded" -lt 100 ]
