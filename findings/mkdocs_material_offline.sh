#!/usr/bin/env bash
# mkdocs-material: the plugin `offline` makes every page load a script from unpkg.com.
#
# Versions: mkdocs-material 9.8.2, mkdocs 1.6.1
# Guess:    a site built with the plugin `offline` needs no network; a site without it may.
# Seen:     the other way round. With font: false, pages built without the plugin name no other host in a script. With it, each page has
#           <script src="https://unpkg.com/iframe-worker/shim">, which replaces web workers, and without which the search is not shown
#           when a page is opened from the disk.
# Effect:   in a closed network the search box is missing, and elsewhere readers of internal documents contact a third party. Serve the
#           site without the plugin.
source "$(dirname "$0")/install.sh" mkdocs-material==9.8.2 mkdocs==1.6.1
mkdir docs
echo 'A page.' > docs/index.md
scripts() {
    printf 'site_name: finding\ntheme: {name: material, font: false}\nplugins: [%s]\nuse_directory_urls: false\n' "$1" > mkdocs.yml
    NO_MKDOCS_2_WARNING=1 venv/bin/mkdocs build --quiet --site-dir site
    grep -o '<script[^>]*src="\?https\?://[^ ">]*' site/index.html || true
}
without=$(scripts search) with=$(scripts 'search, offline')
printf '%s\n' "without: ${without:-none}" "with: $with"
[ -z "$without" ] && grep -q "unpkg.com/iframe-worker" <<< "$with"
