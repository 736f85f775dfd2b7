//! The scripts of `contrib/keys`, as `key_command` runs them: PKCS#11 on a token of SoftHSM.

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
        let made = keygen(&keys, &[]).args(["--pair-only", "--wrapped", "helper", "--"]);
        with(made.args(wrap), env).run().success();
        let add = self.sealed.on("reader").args(["repo", "rewrap", "--add"]);
        add.arg(keys.join("helper.pub")).run().success();
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
            let target = self.still.wal("RECOVERYXLOG");
            let wal = self.still.wal(&self.still.segments[0]);
            assert!(std::fs::read(&target).unwrap() == std::fs::read(wal).unwrap());
            std::fs::remove_file(target).unwrap();
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
        with(Program::new(program).args(arguments), &env)
            .run()
            .success()
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
