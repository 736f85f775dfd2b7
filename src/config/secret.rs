//! A text that must not be shown.

/// A text that may hold a password: no `Debug`, no `Display`, no `Serialize`, so that it cannot slip into a message or a log.
///
/// ```compile_fail
/// let s = pitr::config::Secret::new("password=x".into());
/// format!("{s:?}");
/// ```
/// ```compile_fail
/// let s = pitr::config::Secret::new("password=x".into());
/// format!("{s}");
/// ```
/// ```compile_fail
/// let s = pitr::config::Secret::new("password=x".into());
/// serde_json::to_string(&s);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text in.
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The text itself, for the one place that uses it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}
