#!/usr/bin/env bash
# Installs the Debian packages whose servers `make test-services` starts: memcached, nginx, PostgreSQL with PostGIS.
# What is there already is left alone, so a second call needs neither rights nor network. No service is started or enabled.
set -euo pipefail

has_program() { command -v "$1" >/dev/null || test -x "/usr/sbin/$1"; }
has_postgis() { compgen -G "/usr/share/postgresql/*/extension/postgis.control" >/dev/null; }
has_postgres() { compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null; }

missing=()
has_program memcached || missing+=(memcached)
has_program nginx || missing+=(nginx-light)
has_program runuser || missing+=(util-linux)
has_postgres && has_postgis || missing+=(postgresql postgresql-postgis)
if [ "${#missing[@]}" = 0 ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "service tests need ${missing[*]}: this system has no apt-get; install their equivalents, then run make test-services again" >&2
    exit 1
fi
become=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
        echo "service tests need ${missing[*]}, and installing them needs rights that this user has not; ask an administrator for" >&2
        echo "    apt-get install ${missing[*]}" >&2
        exit 1
    fi
    become=(sudo -n)
fi

# RUNLEVEL=1 keeps the packages' own services from being started: the tests start theirs, on free ports of loopback.
echo "installing ${missing[*]}"
"${become[@]}" apt-get update -qq
"${become[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
