"""``python -m fastlstm``: the same as the ``fastlstm`` command."""

import sys

from fastlstm.cli import main

sys.exit(main())
