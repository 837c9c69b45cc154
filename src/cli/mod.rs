//! The command lines, one file a subcommand. Only this module and `bin/` print or exit.
