#!/usr/bin/env bash
cd "$(dirname "${BASH_SOURCE[0]}")/.." && exec "${PYTHON:-python3}" -m bench gpu "$@"
