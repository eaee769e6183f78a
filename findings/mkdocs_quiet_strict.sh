#!/usr/bin/env bash
# mkdocs: `--quiet` switches `--strict` off.
#
# Version:  mkdocs 1.6.1
# Guess:    --strict counts warnings, --quiet only hides them: a page with a broken link fails under both.
# Seen:     `mkdocs build --strict` ends with 1, `mkdocs build --strict --quiet` with 0, on the same page. Quiet raises the level of the
#           logger on which strict counts, so no warning is ever counted.
# Effect:   a CI job that is strict and quiet passes with broken links. `make docs` is strict and not quiet.
source "$(dirname "$0")/install.sh" mkdocs==1.6.1
mkdir docs
echo 'A [link](nowhere.md) to a page that does not exist.' > docs/index.md
echo 'site_name: finding' > mkdocs.yml
loud=0; venv/bin/mkdocs build --strict > loud.txt 2>&1 || loud=$?
quiet=0; venv/bin/mkdocs build --strict --quiet > quiet.txt 2>&1 || quiet=$?
echo "--strict: exit $loud; --strict --quiet: exit $quiet"
grep -q "nowhere.md" loud.txt
[ "$loud" = 1 ] && [ "$quiet" = 0 ]
