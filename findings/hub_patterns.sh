#!/usr/bin/env bash
# huggingface_hub: the pattern *.json selects files of all folders, a folder's name nothing, and file[1].json its neighbour.
#
# Versions: huggingface-hub 2.4.0
# Guess:    allow_patterns and ignore_patterns work as in a shell or .gitignore: "*" stays in its folder, "original" is this folder, "**/" may
#           be no folder at all, and a file's own name selects the file.
# Seen:     "*.safetensors" selects original/model.safetensors too; ignore_patterns=["original"] ignores nothing ("original/" does);
#           "**/*.json" leaves out the files at the top. With the listed names as patterns "rows[1].json" selects rows1.json.
# Effect:   weights are downloaded twice, or a converter finds the config.json of another folder; a file of a list that was read a moment ago is
#           left out without a word. Add ignore_patterns=["*/*"] for the top, as Talaria does, and glob.escape names.
source "$(dirname "$0")/install.sh" huggingface-hub==2.4.0
py - <<'PY'
import glob

from huggingface_hub.utils import filter_repo_objects

FILES = ["config.json", "model.safetensors", "original/config.json", "original/model.safetensors", "rows[1].json", "rows1.json"]


def selected(**patterns):
    """What snapshot_download and upload_folder select."""
    found = list(filter_repo_objects(FILES, **patterns))
    print(f"{patterns}: {found}")
    return found


assert selected(allow_patterns="*.safetensors") == ["model.safetensors", "original/model.safetensors"]
assert selected(ignore_patterns="original") == FILES
assert not [name for name in selected(ignore_patterns="original/") if name.startswith("original")]
assert selected(allow_patterns="**/*.json") == ["original/config.json"]
assert selected(allow_patterns="rows[1].json") == ["rows1.json"]
assert selected(allow_patterns=glob.escape("rows[1].json")) == ["rows[1].json"]
assert selected(allow_patterns="*.safetensors", ignore_patterns="*/*") == ["model.safetensors"]
PY
