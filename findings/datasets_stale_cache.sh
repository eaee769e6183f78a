#!/usr/bin/env bash
# datasets: a helper module or a source file changes, and the next run gives the old rows.
#
# Versions: datasets 5.2.0
# Guess:    a cached result is used while the code and the data that made it are the same, across modules as within the script.
# Seen:     map and filter hash the function that they are given, and functions of the same script that it calls, but of an imported module
#           only the name: after an edit of helper.py a new process gives what the old helper.py made. Dataset.from_generator hashes the
#           generator and its arguments: after an edit of the file that it reads it gives the old rows. load_dataset of the file does not.
# Effect:   a mended cleaning rule or a new export does not reach the training, and nothing is said. datasets.disable_caching() helps
#           map and filter; give the file's digest to the generator as an argument.
source "$(dirname "$0")/install.sh" datasets==5.2.0
export HF_DATASETS_CACHE="$work/cache"
cat > run.py <<'PY'
import datasets
import helper
datasets.disable_progress_bars()

def local(text):
    return text + LOCAL

LOCAL = open("local.txt").read()
def lines():
    for line in open("rows.txt"):
        yield {"text": line.strip()}
rows = datasets.load_dataset("text", data_files="fixed.txt", split="train")
print("map:", rows.map(lambda row: {"text": helper.clean(row["text"])})["text"][0], end="; ")
print("filter:", len(rows.filter(lambda row: helper.good(row["text"]))), end="; ")
print("map, own function:", rows.map(lambda row: {"text": local(row["text"])})["text"][0], end="; ")
print("from_generator:", datasets.Dataset.from_generator(lines)["text"][0], end="; ")
print("load_dataset:", datasets.load_dataset("text", data_files="rows.txt", split="train")["text"][0])
PY
change() {
    printf 'def clean(text): return text + ", cleaned by %s helper"\ndef good(text): return %s\n' "$1" "$2" > helper.py
    printf ', by %s script' "$1" > local.txt
    printf '%s row' "$1" > rows.txt
    rm -rf __pycache__
}
echo row > fixed.txt
change old True
before=$(py run.py 2>/dev/null)
change newer False
after=$(py run.py 2>/dev/null)
printf 'before: %s\nafter:  %s\n' "$before" "$after"
[ "$before" = "map: row, cleaned by old helper; filter: 1; map, own function: row, by old script; from_generator: old row; load_dataset: old row" ]
[ "$after" = "map: row, cleaned by old helper; filter: 1; map, own function: row, by newer script; from_generator: old row; load_dataset: newer row" ]
sed -i 's/^import helper/datasets.disable_caching()\nimport helper/' run.py
uncached=$(py run.py 2>/dev/null)
echo "with disable_caching(): $uncached"
[[ "$uncached" = "map: row, cleaned by newer helper; filter: 0; "*"from_generator: old row"* ]]
