"""python -m ucgm_jax: the same as ucgm."""

import sys

from ucgm_jax.commands.main import main

sys.exit(main())
