#!/bin/sh
# An authority, and a certificate for every service: each in a volume of its own. Done once.
set -eu
cd /files
[ -e authority/done ] && exit 0
rm -rf authority/* tls-*/*
fedpft certs init --authority authority
issue() { fedpft certs issue --authority authority --role "$1" --name "$2" --out "$3/new" $4 && mv "$3"/new/* "$3" && rmdir "$3/new"; }
issue coordinator coordinator tls-coordinator "--san coordinator --san localhost"
issue admin owner tls-admin ""
for n in 1 2 3; do issue worker "worker-$n" "tls-$n" ""; done
touch authority/done
