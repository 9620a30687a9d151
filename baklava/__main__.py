import sys

from baklava.cli import main

sys.exit(main())
