"""`python -m biocnn.cli` is `biocnn`."""

import sys

from biocnn.cli.main import main

sys.exit(main())
