#!/usr/bin/env bash
# datasets: a list among a generator's arguments is cut up, and the generator called once for each item.
#
# Versions: datasets 5.2.0, torch 2.13.0 (CPU)
# Guess:    from_generator(rows, gen_kwargs={...}) calls rows(**gen_kwargs) once; with `num_proc` or a DataLoader's workers perhaps on parts.
# Seen:     any list is taken for a list of shards: instead of rows(names=["a", "b"]) it calls rows(names=["a"]) and then rows(names=["b"]),
#           in one process too, for Dataset and IterableDataset. Two lists of different length are an error. A tuple is passed as it is.
# Effect:   whatever looks over the whole list (removing duplicates, mixing sources in turn, counting up to a limit) is done for each item
#           alone: the duplicate comes back, sources come one after the other, twice the limit is read. Pass tuples.
source "$(dirname "$0")/install.sh" datasets==5.2.0 torch==2.13.0
export HF_DATASETS_CACHE="$work/cache"
cat > run.py <<'PY'
import itertools
import datasets
from torch.utils.data import DataLoader

datasets.disable_progress_bars()
TEXTS = {"chat": ["hello", "thanks"], "forum": ["question", "hello"]}


def mixed(sources, limit):
    """One row of each source in turn, no text twice, at most `limit` rows."""
    texts = dict.fromkeys(text for turn in itertools.zip_longest(*(TEXTS[source] for source in sources)) for text in turn)
    for text in itertools.islice(texts, limit):
        yield {"text": text}


def read(rows):
    return [row["text"] for row in rows]


if __name__ == "__main__":
    given = {"sources": ["chat", "forum"], "limit": 3}
    whole = datasets.Dataset.from_generator(mixed, gen_kwargs=given)["text"][:]
    streamed = datasets.IterableDataset.from_generator(mixed, gen_kwargs=given)
    tuples = datasets.IterableDataset.from_generator(mixed, gen_kwargs={**given, "sources": ("chat", "forum")})
    processes = datasets.Dataset.from_generator(mixed, gen_kwargs=given, num_proc=2)["text"][:]
    print("Dataset.from_generator:             ", whole)
    print("IterableDataset.from_generator:     ", read(streamed))
    print("... and two workers:                ", read(DataLoader(streamed, batch_size=None, num_workers=2)))
    print("Dataset.from_generator, num_proc=2: ", processes)
    print("IterableDataset, a tuple:           ", read(tuples))
    assert read(tuples) == [row["text"] for row in mixed(**given)] == ["hello", "question", "thanks"]
    assert whole == read(streamed) == processes == ["hello", "thanks", "question", "hello"]
    assert sorted(read(DataLoader(streamed, batch_size=None, num_workers=2))) == sorted(processes)
    try:
        read(datasets.IterableDataset.from_generator(mixed, gen_kwargs={"sources": ["chat", "forum"], "limit": [3]}))
    except RuntimeError as error:
        print("lists of two lengths:", str(error).splitlines()[0])
PY
py run.py 2>log.txt || { tail -5 log.txt; exit 1; }
