//! Equal blocks that are shared and counted.
