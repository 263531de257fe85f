//! Seam under construction.
