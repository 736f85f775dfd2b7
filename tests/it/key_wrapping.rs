//! The scripts of `contrib/keys`, as `key_command` runs them: PKCS#11 on a token of SoftHSM, and a stub of Vault.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::common::{Program, Run, Sandbox};
use crate::sealed::{Stored, keygen, refused};

/// Copies a script of `contrib/keys` to where nobody else may change it.
fn script(sandbox: &Sandbox, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/keys");
    let copy = sandbox.file(name, std::fs::read(source.join(name)).unwrap());
    executable(&copy);
    copy
}

fn executable(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

impl Stored {
    /// Makes the recipient `helper`, whose key `wrap` has wrapped, gives it access, and returns the wrapped key.
    fn wrapped_by(&self, wrap: &[&str], env: &[(&str, String)]) -> PathBuf {
        let keys = self.sealed.sandbox.join("helper-keys");
        let made = keygen(&keys, &[]).words("--pair-only --wrapped helper --");
        with(made.args(wrap), env).succeed();
        let add = self.sealed.on("reader").words("repo rewrap --add");
        add.arg(keys.join("helper.pub")).succeed();
        assert!(!keys.join("helper.key").exists());
        keys.join("helper.wrapped")
    }

    fn host(&self, name: &str, unwrap: &[&str]) {
        let words: Vec<String> = unwrap.iter().map(|word| format!("\"{word}\"")).collect();
        let encryption = format!("key_command = [{}]", words.join(", "));
        self.sealed
            .configure(&self.still.cluster, name, &encryption);
    }

    fn fetched(&self, host: &str, env: &[(&str, String)]) -> Run {
        let run = with(self.sealed.fetch(&self.still, host, 0), env).run();
        if run.is_success() {
            self.still.check_first();
        }
        run
    }
}

fn with(program: Program, env: &[(&str, String)]) -> Program {
    let add = |program: Program, (name, value): &(&str, String)| program.env(name, value);
    env.iter().fold(program, add)
}

#[test]
fn a_key_that_is_wrapped_to_a_token_opens_the_repository() {
    let stored = Stored::new();
    let sandbox = &stored.sealed.sandbox;
    let module = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
    ];
    let module = module.into_iter().find(|path| Path::new(path).exists());
    let module = module.expect("SoftHSM is installed: scripts/get-tools test");
    let settings = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        sandbox.dir("tokens").display()
    );
    let settings = sandbox.file("softhsm2.conf", settings);
    let env = [("SOFTHSM2_CONF", settings.display().to_string())];
    let run = |program: &str, arguments: &[&str]| {
        with(Program::new(program).args(arguments), &env).succeed()
    };
    let init = ["--init-token", "--free", "--label", "pitr", "--pin", "1234"];
    run(
        "/usr/bin/softhsm2-util",
        &[&init[..], &["--so-pin", "5678"]].concat(),
    );
    let token = |arguments: &[&str]| {
        let login = ["--module", module, "--login", "--pin", "1234", "--id", "01"];
        run("/usr/bin/pkcs11-tool", &[&login[..], arguments].concat())
    };
    token(&["--keypairgen", "--key-type", "rsa:3072"]);
    let der = sandbox.join("token.der").display().to_string();
    token(&["--read-object", "--type", "pubkey", "--output-file", &der]);
    let pem = sandbox.join("token.pem").display().to_string();
    let convert = [
        "pkey", "-pubin", "-inform", "der", "-in", &der, "-out", &pem,
    ];
    run("/usr/bin/openssl", &convert);
    let helper = script(sandbox, "pkcs11").display().to_string();
    // SoftHSM knows SHA-1 alone for this padding.
    let wrapped = stored.wrapped_by(&[&helper, "wrap", &pem, "SHA-1"], &env);
    let wrapped = wrapped.display().to_string();
    let pin = sandbox.file("pin", "1234\n").display().to_string();
    let unwrap = |pin: &str, hash: &str| {
        let words = [&helper, "unwrap", module, "01", pin, &wrapped, hash];
        stored.host("token", &words);
        stored.fetched("token", &env)
    };
    unwrap(&pin, "SHA-1").success();
    let wrong = sandbox.file("wrong-pin", "4321\n").display().to_string();
    refused(&unwrap(&wrong, "SHA-1"), 204, "CKR_PIN_INCORRECT");
    refused(&unwrap(&pin, "SHA256"), 204, "CKR_ARGUMENTS_BAD");
}

/// The words of Vault's own program that the script uses. The file `how` beside it says in what way it fails; letters are exchanged in place of encryption.
const VAULT: &str = r#"#!/bin/sh
change() { tr A-Za-z N-ZA-Mn-za-m; }
if [ "$1 $2 $3 $4" = "write -field=ciphertext transit/encrypt/pitr plaintext=-" ]; then
  printf vault:v1:
  change
  exit
fi
[ "$1 $2 $3" = "write -field=plaintext transit/decrypt/pitr" ] || { echo "unknown: $*" >&2; exit 1; }
key=$(sed s/^vault:v1:// "${4#ciphertext=@}" | change)
case $(cat "$(dirname "$0")/how") in
  sealed) echo "Error: Vault is sealed" >&2; exit 2 ;;
  silent) exit 0 ;;
  short) echo "$key" | head -c 40 ;;
  broken) echo "$key" | head -c 40; exit 1 ;;
  *) echo "$key" ;;
esac
"#;

#[test]
fn j69_a_key_that_vault_wrapped_opens_the_repository_and_half_a_key_does_not() {
    let stored = Stored::new();
    let sandbox = &stored.sealed.sandbox;
    let programs = sandbox.dir("programs");
    executable(&sandbox.file("programs/vault", VAULT));
    let how = |word: &str| drop(sandbox.file("programs/how", word));
    // A command of the configuration has a search path of its own.
    let helper = script(sandbox, "vault").display().to_string();
    let places = programs.display();
    let beside = format!("#!/bin/sh\nPATH={places}:$PATH exec {helper} \"$@\"\n");
    let beside = sandbox.file("beside-vault", beside);
    executable(&beside);
    let helper = beside.display().to_string();
    let wrapped = stored.wrapped_by(&[&helper, "wrap", "pitr"], &[]);
    let text = std::fs::read_to_string(&wrapped).unwrap();
    assert!(text.starts_with("vault:v1:"), "{text}");
    let wrapped = wrapped.display().to_string();
    stored.host("vault", &[&helper, "unwrap", "pitr", &wrapped]);
    how("well");
    stored.fetched("vault", &[]).success();
    for (word, part) in [
        ("sealed", "Vault is sealed"),
        ("silent", ""),
        ("short", ""),
        ("broken", ""),
    ] {
        how(word);
        refused(&stored.fetched("vault", &[]), 204, part);
    }
    // A key of another name is none of this one's.
    how("well");
    stored.host("other", &[&helper, "unwrap", "another", &wrapped]);
    refused(&stored.fetched("other", &[]), 204, "unknown");
}
