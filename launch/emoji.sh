#!/usr/bin/env bash
# Fetches the emoji (npm's emoji-datasource-twitter, artwork CC-BY 4.0), makes class folders of them, trains a model in
# pixel space and leaves runs/emoji/samples.png. Needs Python 3.11 or newer and npm.
#
#   bash launch/emoji.sh           configs/emoji_small.py: 32 x 32, 32 minutes on two CPU cores
#   bash launch/emoji.sh emoji     configs/emoji.py: 64 x 64, for a GPU
#
# Further arguments go to ucgm train. EMOJI_PACKAGE names a tarball that is already here.
source "$(dirname "$0")/environment.sh"
config="${1:-emoji_small}"
shift || true
if [ "$config" = emoji ]; then ucgm_environment "${UCGM_EXTRAS:-cuda}"; else ucgm_environment ""; fi

if [ ! -d runs/emoji/images ]; then
  package="${EMOJI_PACKAGE:-}"
  if [ -z "$package" ]; then
    if ! command -v npm >/dev/null; then
      echo "error: EMOJI_PACKAGE: must name the tarball of emoji-datasource-twitter 16.0.0; there is no npm to fetch it" >&2
      exit 2
    fi
    mkdir -p runs/emoji
    (cd runs/emoji && npm pack --silent emoji-datasource-twitter@16.0.0)
    package=runs/emoji/emoji-datasource-twitter-16.0.0.tgz
  fi
  python launch/emoji.py --package="$package" --out=runs/emoji/images
fi
python -m ucgm_jax train --config="$config" --workdir="runs/emoji/$config" "$@"
python -m ucgm_jax sample --checkpoint="runs/emoji/$config" --count=60 --out=runs/emoji/samples.png
