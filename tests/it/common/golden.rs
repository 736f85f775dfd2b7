//! Expected output in `testdata/golden`, reviewed as text; `make golden` writes it anew.

use std::path::Path;

/// Compares `text` with `testdata/golden/<name>`. What differs from run to run (paths, LSNs, times) is replaced before.
///
/// # Panics
/// If they differ; both are printed. With `PITR_UPDATE_GOLDEN` set the file is written instead (never when CI is set).
pub fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/golden")
        .join(name);
    if std::env::var_os("PITR_UPDATE_GOLDEN").is_some() && std::env::var_os("CI").is_none() {
        std::fs::create_dir_all(path.parent().expect("it has a folder")).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; `make golden` writes it", path.display()));
    assert!(
        expected == text,
        "{} differs (`make golden` writes it anew)\n--- expected\n{expected}\n--- printed\n{text}",
        path.display()
    );
}
