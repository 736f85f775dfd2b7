//! The program that a profile runs for credentials (`credential_process`). Its output may hold the credentials, or the
//! secrets that it logs in with. So the report of its failure contains only the program and its exit status.

use aws_credential_types::provider::error::CredentialsError;

use crate::error::causes;

/// The client's words for the program, before those that it repeats from the program's output.
const NAMED: &str = "external process";
/// Between these it says how the program ended.
const ENDED: [&str; 2] = ["exited with code ", ". Stderr:"];

/// The program of a command line, without its arguments, where the first word is nothing else to a shell.
pub(super) fn program_of(command: &str) -> Option<String> {
    let word = command.split_whitespace().next()?;
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+".contains(&b);
    word.bytes().all(is_plain).then(|| word.to_owned())
}

/// The error, without what the program printed.
pub(super) fn without_output(error: CredentialsError, program: Option<&str>) -> CredentialsError {
    let said = said(&error);
    if !said.contains(NAMED) {
        return error;
    }
    let [begin, end] = ENDED;
    let status = said
        .split_once(begin)
        .and_then(|(_, rest)| rest.split_once(end));
    let how = match status {
        Some((status, _)) => format!("failed ({status})"),
        None => "gave nothing that is taken for credentials".to_owned(),
    };
    let who = program.unwrap_or("of the profile");
    CredentialsError::provider_error(format!(
        "the credential_process {who} {how}. What it printed is left out, for it may hold secrets: run it by hand, as the user that runs pitr"
    ))
}

fn said(error: &CredentialsError) -> String {
    let texts: Vec<String> = causes(error).map(ToString::to_string).collect();
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_failure_the_program_and_its_status_are_told_and_nothing_that_it_printed() {
        let told = |text: &str, program| {
            let error = CredentialsError::provider_error(text.to_owned());
            said(&without_output(error, program))
        };
        let failed = "Error retrieving credentials: external process exited with code exit status: 3. Stderr: token 4711. Stderr: 42";
        let text = told(failed, Some("/opt/get-keys"));
        assert!(
            text.contains(" /opt/get-keys failed (exit status: 3)"),
            "{text}"
        );
        assert!(!text.contains("4711") && !text.contains("42"), "{text}");
        let odd =
            "Error retrieving credentials from external process, could not parse response: 4711";
        let text = told(odd, None);
        assert!(text.contains("of the profile gave nothing"), "{text}");
        assert!(!text.contains("4711"), "{text}");
        let other = "no answer from 169.254.169.254";
        assert!(told(other, None).contains(other));
    }

    #[test]
    fn a_program_is_named_without_what_may_be_secret() {
        assert_eq!(
            program_of(" /opt/get-keys --token 4711").unwrap(),
            "/opt/get-keys"
        );
        for odd in [
            "",
            "TOKEN=4711 get-keys",
            "\"/opt/get keys\"",
            "(get-keys)",
            "$(x)",
        ] {
            assert_eq!(program_of(odd), None, "{odd}");
        }
    }
}
