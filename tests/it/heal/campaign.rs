//! A campaign: two repositories are damaged at random, round after round, and healed from one another.
//!
//! `PITR_HEAL_DAMAGES` says how many damages (`make heal-campaign`: 10 000), `PITR_HEAL_SEED` repeats a run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::copies::{Copies, all, damage};
use crate::common::files_below;
use crate::common::number;
use crate::common::random::Random;

const DAMAGES: usize = 30;
const SEED: u64 = 0x4EA1;

fn read(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = files_below(root).into_iter();
    files
        .map(|key| {
            let bytes = std::fs::read(root.join(&key)).unwrap();
            (key, bytes)
        })
        .collect()
}

/// Brings a repository back to what it was.
fn reset(root: &Path, pristine: &BTreeMap<String, Vec<u8>>) {
    for key in files_below(root) {
        if !pristine.contains_key(&key) {
            std::fs::remove_file(root.join(key)).unwrap();
        }
    }
    for (key, bytes) in pristine {
        let path = root.join(key);
        if !std::fs::read(&path).is_ok_and(|found| found == *bytes) {
            std::fs::write(path, bytes).unwrap();
        }
    }
}

/// The backup to which a root, a layer, a pack or another part of it belongs.
fn backup_of<'a>(key: &'a str, part: &str) -> Option<&'a str> {
    key.split_once(part)?.1.split('/').next()
}

/// Whether nothing can be known of an object where `lost`, which both repositories have damaged, is not read: a root leads to all of its backup,
/// and the layers of a backup to its packs and to those of the backups that build on it, which come later.
fn hides(lost: &str, object: &str) -> bool {
    let is_root = lost.ends_with("/manifest");
    if let (true, Some(id)) = (is_root, backup_of(lost, "/backups/")) {
        return object.split('/').any(|part| part == id);
    }
    match (backup_of(lost, "/layers/"), backup_of(object, "/packs/")) {
        (Some(id), Some(of)) => of >= id,
        _ => false,
    }
}

/// Whether an object is lost, by what both repositories have damaged: itself, or what leads to it. A finding may name the folder of one.
fn is_lost(both: &BTreeSet<&str>, object: &str) -> bool {
    both.iter()
        .any(|lost| lost.starts_with(object) || hides(lost, object))
}

/// An absence of these shows.
fn is_missed(key: &str) -> bool {
    ["/packs/", "/layers/", "/server-manifest"]
        .iter()
        .any(|part| key.contains(part))
}

#[test]
fn v09_whatever_either_side_can_prove_is_healed() {
    let wanted = number("PITR_HEAL_DAMAGES").unwrap_or(DAMAGES as u64) as usize;
    let seed = number("PITR_HEAL_SEED").unwrap_or(SEED);
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let worlds: Vec<_> = ["plain-2", "encrypted-2"]
        .into_iter()
        .map(|form| {
            let copies = Copies::new(form);
            let pristine = read(&copies.second);
            (copies, pristine)
        })
        .collect();
    let (mut damages, mut healed, mut lost, mut hidden, mut rounds) = (0, 0, 0, 0, 0);
    while damages < wanted {
        rounds += 1;
        let (copies, pristine) = &worlds[rounds % worlds.len()];
        let keys = copies.keys();
        let mut hit: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for _ in 0..=random.below(12) {
            let (name, root) =
                *random.pick(&[("frozen", &copies.first), ("second", &copies.second)]);
            let key = random.pick(&keys);
            if !hit.entry(name).or_default().insert(key) {
                continue;
            }
            damages += 1;
            match is_missed(key) && random.one_in(4) {
                true => std::fs::remove_file(root.join(key)).unwrap(),
                false => damage(root, key, random.below(5)),
            }
        }
        let none = BTreeSet::new();
        let of = |name: &str| hit.get(name).unwrap_or(&none);
        let both: BTreeSet<&str> = of("frozen").intersection(of("second")).copied().collect();
        // The second one heals from what the first one healed, and the first one once more from the second.
        let heal = |name: &str| {
            copies
                .frozen
                .pitr()
                .args(["verify", "--json", "--heal", "--repository", name])
                .run()
        };
        for name in ["frozen", "second"] {
            heal(name);
        }
        for (name, root) in [("frozen", &copies.first), ("second", &copies.second)] {
            let run = heal(name);
            let report = run.json();
            let left = all(&report, "findings");
            let is_known = |finding: &&Value| is_lost(&both, finding["object"].as_str().unwrap());
            if both.is_empty() {
                assert_eq!(
                    run.code(),
                    0,
                    "seed {seed}, round {rounds}, {name}, damaged {hit:?}: {report:#}"
                );
            }
            let unknown: Vec<&Value> = left.iter().filter(|f| !is_known(f)).collect();
            assert!(
                unknown.is_empty(),
                "seed {seed}, round {rounds}, {name}, damaged {hit:?}: {unknown:#?}"
            );
            for key in of(name).iter().filter(|key| !both.contains(*key)) {
                let is_back = [root.join(key), root.join(format!("{key}.heal-1"))]
                    .iter()
                    .any(|path| std::fs::read(path).is_ok_and(|found| found == pristine[*key]));
                assert!(
                    is_back || is_lost(&both, key),
                    "seed {seed}, round {rounds}, {name}: {key} of {hit:?}: {report:#}"
                );
                healed += usize::from(is_back);
                hidden += usize::from(!is_back);
            }
            lost += both.len();
            // Nothing but the truth was written.
            for (key, bytes) in read(root).iter().filter(|(key, _)| key.contains(".heal-")) {
                let (base, _) = key.rsplit_once(".heal-").unwrap();
                assert!(
                    pristine[base] == *bytes,
                    "seed {seed}, round {rounds}, {name}: {key} is another object"
                );
            }
        }
        for root in [&copies.first, &copies.second] {
            reset(root, pristine);
        }
    }
    println!(
        "{damages} damages in {rounds} rounds: {healed} healed, {lost} damaged on both sides, {hidden} behind these"
    );
    assert!(
        healed > 0 && (wanted < 1000 || lost > 0),
        "{healed} healed, {lost} lost"
    );
}
