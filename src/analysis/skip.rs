//! What bypassing a module means, and whether it is legal.
