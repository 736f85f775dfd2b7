//! Headers and frames of a journal file, as bytes (`docs/journal-format.md`).
