//! `pitr repo`.

use super::output::Table;
use super::{
    Context, repo_check, repo_claims, repo_compact, repo_cost, repo_join, repo_keys,
    repo_lifecycle, repo_rewrap, repo_rotate, repo_sync, repo_thaw, repo_tier,
};
use crate::error::{Code, Result};
use crate::exit::{self, Program};
use crate::operate::human;
use crate::operate::repositories::{self, RepositoryInfo};

/// Look at the repositories themselves
///
/// Example: pitr repo show
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Show what each repository is, and which clusters it knows
    ///
    /// Exit status 10 when some cannot be opened; when none can, that of the first (9 where there is none).
    ///
    /// Example: pitr repo show --repository /var/backups/pitr
    Show {},
    /// Try whether each repository keeps what it promises, and what these credentials may do
    ///
    /// Writes some objects of up to 8 MiB beside the repository's own, and takes them away again where that is allowed. Exit status 6 when
    /// something is weak, 8 when a place cannot keep a repository, 10 when some could not be tried.
    ///
    /// Example: pitr repo check --repository offsite
    Check {},
    /// Copy what repositories lack of one another
    ///
    /// Brings a repository that was away up to date, or fills a fresh one: backups, WAL, histories and pins, byte for byte and checked while they
    /// are copied. Nothing is ever replaced, and nothing comes back that the receiving side has expired: it gets the backups that are newer than
    /// the oldest it keeps, and the WAL that its backups need. Without --from and --to every repository gets what any other has.
    /// Killed or interrupted, the next run goes on. Encrypted objects are copied between repositories of one key set; no key that reads is
    /// needed for it.
    ///
    /// Exit status 10 when an object was damaged, the repositories contradict one another, or one could not be reached.
    ///
    /// Example: pitr repo sync --from local --to offsite
    Sync(repo_sync::Args),
    /// Show what keeps backups and WAL from deletion for a time, and end it
    ///
    /// Backups that run, restores and copies claim what they read or write: "pitr expire" deletes none of it. A claim ends with its command, or
    /// by itself some hours after the last renewal. --release ends the claim of a command that was killed, or of a host that is gone, at once. A command that
    /// still runs is not stopped by that: a backup that WAL or a tombstone overtakes is not committed.
    ///
    /// Without --confirm nothing is released: exit status 8.
    ///
    /// Example: pitr repo claims --release 20261120T064049Z-482913-full --confirm
    Claims(repo_claims::Args),
    /// Show what each repository holds by kind and storage class, what a month of it costs, and how it grows
    ///
    /// Lists every object. Prices are those of the configuration ("price"); without them bytes and objects alone are shown. The
    /// forecast goes by the growth: everything that was stored in the last 30 days and is still there. Requests that read, traffic, and versions that the bucket
    /// keeps of deleted objects are not counted. Exit status 10 when some repository cannot be opened.
    ///
    /// Example: pitr repo cost --repository offsite
    Cost {},
    /// Move packs and WAL that no young backup needs to colder storage classes
    ///
    /// The classes, and the age at which they begin, are those of the configuration ("tier"). A pack is as old as the newest backup that names
    /// it. Packs that the newest backup needs stay, and so do those that a backup or a restore reads now. With tier_by = "rules", each object
    /// is tagged (pitr-tier), and rules of the bucket move it within a day or two: "pitr repo lifecycle" prints them. With "copy", the store
    /// copies each object onto itself; locked ones stay.
    ///
    /// Run it by the janitor, after "pitr expire". Killed, the next run goes on. Without --confirm nothing is moved: exit status 8. Exit status
    /// 10 when the store refused a move.
    ///
    /// Example: pitr repo tier --dry-run
    Tier(repo_tier::Args),
    /// Print the lifecycle rules that "tier" needs in the bucket, and check those that are there
    ///
    /// Prints the rules as JSON, for aws s3api put-bucket-lifecycle-configuration, which replaces all rules of the bucket. Warns when one of
    /// them is lacking, and of every other rule that deletes or moves objects of the repository. Exit status 6 then.
    ///
    /// Example: pitr repo lifecycle --repository offsite > rules.json
    Lifecycle {},
    /// Have the store thaw what a restore of a backup needs
    ///
    /// Objects in the classes GLACIER and DEEP_ARCHIVE must be thawed before they can be read, which takes hours and costs money. This requests
    /// it for each object of the backup, and shows how far the store is. Run again, it requests what is left. The objects stay readable for
    /// some days, and are frozen again by themselves.
    ///
    /// Example: pitr repo thaw --backup 20261120T064049Z-482913-full --wait
    Thaw(repo_thaw::Args),
    /// Store a backup once more, without the packs of which little is visible
    ///
    /// After many incrementals a backup reads old packs of which it needs a small part, and these cannot be deleted. This stores that part
    /// again, from the repository alone: the server is not asked. The new backup stands beside the old one and gives the same bytes. Retention
    /// counts the two as one, and "pitr expire" lets the old one go once the new one was verified and is a day old. Neither the age of the
    /// content (full_every) nor the time of the last scan begins anew.
    ///
    /// No backup of the cluster runs meanwhile: exit status 7, or --wait. An encrypted repository needs a reader's key. Killed, it leaves
    /// nothing that counts, and the next run begins anew. Without --confirm nothing is stored: exit status 8.
    ///
    /// Example: pitr repo compact --visible 50 --max-rate 50MB --confirm
    Compact(repo_compact::Args),
    /// Make the keys of an encrypted repository
    ///
    /// Writes writer.key, for hosts that write, and for each recipient NAME.key, which opens what was written, and NAME.pub. The key that opens
    /// objects is nowhere in plain: it is wrapped for the recipients, and init puts it into the repository.
    ///
    /// Example: pitr repo keygen --dir keys --recipient ops --recipient escrow
    Keygen(repo_keys::KeygenArgs),
    /// Join the shares of a recipient's key into a key file
    ///
    /// "pitr repo keygen --split" makes the shares. They are read from files and from standard input, never from the command line. Every share
    /// that is given takes part and is checked: a mistake in typing is found by the line, a share of another set by its name, and one that
    /// somebody changed by the key that does not come out. Nothing is written then.
    ///
    /// Example: pitr repo join --out /run/breakglass.key share-1 share-4 share-5
    Join(repo_join::Args),
    /// Give somebody access to an encrypted repository, or withdraw it
    ///
    /// No data is rewritten. Access is withdrawn only when two other recipients are proven to have it: by the configured key, a passphrase that
    /// is given access by the same command, and --proof. The withdrawn recipient may still know what it opened before.
    ///
    /// With --all it plans the change of every repository of the configuration before it writes anything: exit status 8 without --confirm. Access is then
    /// given everywhere, and withdrawn afterwards, from the secrets pairs as well. Those of --add get access to these with --secrets alone. An error
    /// ends it. The output says what is done in each repository; the same command goes on with the rest.
    ///
    /// Example: pitr repo rewrap --add new.pub --withdraw old --proof escrow.key
    Rewrap(repo_rewrap::Args),
    /// Give the key set another pair for what is sealed from now on
    ///
    /// Makes the next epoch of the key set in every repository of the configuration, and writer.key of it for the hosts that write. No data is
    /// rewritten: readers open all epochs side by side, and incrementals go on. Who reads the new epoch is named here, and reads the former ones
    /// already. Two of them are proven: by the configured key, a passphrase that is named, and --proof. Everybody else keeps the keys of former epochs.
    ///
    /// Run it where a recipient's key is, with the current writer.key as key_set. Every repository must answer. Killed, the same command goes on.
    /// The file for hosts is made last: before that, --take-back deletes what was stored. Hosts seal in the new epoch as soon as they have that
    /// file as key_set. The former file goes on to work; what it seals can be read by who has the former keys.
    ///
    /// A repository that was away, or was added, gets the epochs that it lacks by the same command, with the current writer.key in the directory.
    ///
    /// Without --confirm nothing is stored: exit status 8.
    ///
    /// Example: pitr repo rotate --dir keys-2 --add ops.pub --add escrow.pub --proof escrow.key --dry-run
    Rotate(repo_rotate::Args),
}

pub fn run(command: &Command, cx: &Context) -> Result<u8> {
    match command {
        Command::Show {} => show(cx),
        Command::Check {} => repo_check::check(cx),
        Command::Sync(args) => repo_sync::run(args, cx),
        Command::Claims(args) => repo_claims::run(args, cx),
        Command::Compact(args) => repo_compact::run(args, cx),
        Command::Cost {} => repo_cost::run(cx),
        Command::Tier(args) => repo_tier::run(args, cx),
        Command::Lifecycle {} => repo_lifecycle::run(cx),
        Command::Thaw(args) => repo_thaw::run(args, cx),
        Command::Keygen(args) => repo_keys::keygen(args, cx),
        Command::Join(args) => repo_join::run(args, cx),
        Command::Rewrap(args) => repo_rewrap::run(args, cx),
        Command::Rotate(args) => repo_rotate::run(args, cx),
    }
}

fn show(cx: &Context) -> Result<u8> {
    let (shown, mut failed) = repositories::look(&cx.session)?;
    // The only repository that cannot be opened is the answer's end, not a part of it.
    if let ([_], 1) = (shown.as_slice(), failed.len())
        && let Some(error) = failed.pop()
    {
        return Err(error);
    }
    let all = serde_json::json!({ "repositories": shown });
    cx.answer(&all, || print(cx, &shown))?;
    let Some(first) = failed.first() else {
        return Ok(exit::SUCCESS);
    };
    let code = match failed.len() == shown.len() {
        true => first.code(),
        false => Code::Partial,
    };
    if !cx.is_json() {
        for error in &failed {
            cx.error(error);
        }
    }
    Ok(exit::status(Program::Pitr, code))
}

fn print(cx: &Context, shown: &[RepositoryInfo]) -> Result<()> {
    let mut places = Table::of("repository | url | required | created");
    let mut clusters =
        Table::of("cluster | repository | >PostgreSQL | >system identifier | registered");
    for one in shown {
        places.row([
            one.name.as_str(),
            &one.url,
            if one.required { "yes" } else { "no" },
            &one.created
                .map_or_else(|| "cannot be opened".to_owned(), human::time),
        ]);
        for cluster in &one.clusters {
            clusters.row([
                cluster.name.as_str(),
                &one.name,
                &cluster.major.to_string(),
                &cluster.system_identifier,
                &human::time(cluster.first_seen),
            ]);
        }
    }
    if shown.is_empty() {
        return cx.line("No repository is configured.");
    }
    cx.table(&places)?;
    cx.line("")?;
    match clusters.is_empty() {
        true => cx.line("No cluster is registered."),
        false => cx.table(&clusters),
    }
}
