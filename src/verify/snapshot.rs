//! Backups: the chain of hashes from the root to every frame, the map against the frames, pages against their checksums, files against
//! the server's manifest.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::check::panicked;
use super::depth::Depth;
use super::manifest::{Compared, Sums, check_hash};
use super::packs::{Chosen, Inspect, Mapped, check_layers, open_map, read_packs, walk_map};
use super::wal::Extent;
use super::{About, FindingKind, Work, files};
use crate::error::Result;
use crate::pg::datapage::{self, DEFAULT_PAGE_SIZE, PageHeader, PageState};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::repo::catalog::Parts;
use crate::repo::container::Container;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::lives::Lives;
use crate::repo::relations;
use crate::repo::root::BackupRoot;
use crate::repo::wal_proof::{WalProof, foreign};
use crate::snapshot::filekey::FileKey;
use crate::snapshot::reader::{Snapshot, SnapshotRoot, VisibleFrame};
use crate::wal::increment::OpenSegment;
use crate::wal::stored_wal;

/// Findings about one pack, and pages listed of one backup, at most.
const LISTED_MAX: usize = 20;

/// Reads one backup, all of its packs, those that were not read as another backup's, or their directories.
pub(super) fn check(work: &Work<'_>, id: &BackupId, chosen: Chosen<'_>) -> Result<()> {
    let about = || About::Backup(id.clone());
    let key = work.layout.manifest(id);
    let Some(root) = open(work, id)? else {
        return Ok(());
    };
    work.count(0);
    let phase = format!("verify backup {id}");
    work.host.progress.phase(&phase, Some(root.head.size_bytes));
    if root.content.is_damaged() {
        let detail = format!(
            "{} pages failed their checksum when the backup was taken{}",
            root.content.damage_count,
            first_pages(&root)
        );
        work.find(FindingKind::Pages, key.as_str(), detail, about());
    }
    check_wal_proof(work, &root)?;
    if !matches!(chosen, Chosen::Directories) {
        let list_key = work.layout.relations(id);
        work.settle(check_relations(work, &root), list_key.as_str(), about())?;
    }
    let view = SnapshotRoot::from(&root);
    let map = match check_layers(work, &view)? {
        true => walk_map(work, view)?,
        false => None,
    };
    let Some((snapshot, mapped)) = map else {
        return manifest_alone(work, &root);
    };
    let chosen = match chosen.of(work, &snapshot) {
        Chosen::Rest if root.content.data_checksums && is_unsummed(work) => Chosen::All,
        other => other,
    };
    if !root.content.data_checksums {
        work.is_unsummed.store(true, Ordering::Relaxed);
    }
    if !matches!(chosen, Chosen::All) {
        if matches!(chosen, Chosen::Rest) {
            work.found().uncompared.insert(id.clone());
        }
        manifest_alone(work, &root)?;
        return read_files(work, &root, (&snapshot, chosen), mapped, None);
    }
    let manifest_key = work.layout.server_manifest(id);
    let manifest = server_manifest(work, &root, Extent::Whole);
    let manifest = work
        .settle(manifest, manifest_key.as_str(), about())?
        .flatten();
    read_files(work, &root, (&snapshot, chosen), mapped, manifest.as_ref())
}

/// Whether packs count as whole in which nobody has asked for checksums of pages.
fn is_unsummed(work: &Work<'_>) -> bool {
    work.is_unsummed.load(Ordering::Relaxed)
}

/// Reads the server's manifest by itself: the root proves it, also where the map is lost. No event says that it was read, so every run that reads content
/// reads it.
fn manifest_alone(work: &Work<'_>, root: &BackupRoot) -> Result<()> {
    let key = work.layout.server_manifest(&root.head.id);
    let about = || About::Backup(root.head.id.clone());
    let extent = match work.what.depth {
        Depth::Fast => Extent::End,
        Depth::Everything | Depth::Oldest(_) => Extent::Whole,
    };
    let read = || {
        let container = server_manifest(work, root, extent)?;
        match container.filter(|_| extent == Extent::Whole) {
            Some(container) => container.read_body(&mut |_| Ok(())),
            None => Ok(()),
        }
    };
    work.settle(read(), key.as_str(), about()).map(drop)
}

/// Reads some packs of a backup of which the rest was looked at before.
pub(super) fn read_some(work: &Work<'_>, id: &BackupId, packs: &Parts) -> Result<()> {
    let Some(root) = open(work, id)? else {
        return Ok(());
    };
    match open_map(work, (&root).into())? {
        Some(snapshot) => {
            let nothing = Mapped::nothing(work);
            read_files(work, &root, (&snapshot, Chosen::Only(packs)), nothing, None)
        }
        None => Ok(()),
    }
}

fn open(work: &Work<'_>, id: &BackupId) -> Result<Option<BackupRoot>> {
    work.root(id, BackupRoot::read(work.store, &work.layout, id))
}

/// Compares the WAL that a backup needs with what was proven of it when it was taken.
fn check_wal_proof(work: &Work<'_>, root: &BackupRoot) -> Result<()> {
    let Some(proof) = &root.content.wal_proof else {
        work.unproven.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    };
    let Some(name) = foreign_segment(work, &work.layout, root, proof)? else {
        return Ok(());
    };
    if is_of_a_life_that_was_left(work, root, proof)? {
        work.warn(format!(
            "backup \"{}\" belongs to a life of its timeline that is not followed any more (pitr wal conflicts): with --as-stored it is restored",
            root.head.id
        ));
        work.found().elsewhere.push(root.head.id.clone());
        return Ok(());
    }
    let key = work.layout.segment(name);
    let about = About::Backup(root.head.id.clone());
    work.find(FindingKind::Damaged, key.as_str(), foreign(name), about);
    Ok(())
}

/// Whether a backup is whole with the segments that were archived first. Damage would be recorded, and keep it from being restored there, too.
fn is_of_a_life_that_was_left(
    work: &Work<'_>,
    root: &BackupRoot,
    proof: &WalProof,
) -> Result<bool> {
    if work.layout.lives().is_empty() {
        return Ok(false);
    }
    let stored = work.layout.clone().with_lives(Lives::default());
    Ok(foreign_segment(work, &stored, root, proof)?.is_none())
}

/// The first segment that is not what was proven, in the homes of a layout.
fn foreign_segment(
    work: &Work<'_>,
    layout: &ClusterLayout,
    root: &BackupRoot,
    proof: &WalProof,
) -> Result<Option<SegmentName>> {
    match proof.disagreement(work.store, layout)? {
        Some(name) => Ok(Some(name)),
        None => foreign_tail(work, layout, root, proof),
    }
}

/// The last segment, if it begins with other bytes than the proof says. Its whole hash is not known where it was stored later.
fn foreign_tail(
    work: &Work<'_>,
    layout: &ClusterLayout,
    root: &BackupRoot,
    proof: &WalProof,
) -> Result<Option<SegmentName>> {
    let Some((name, length_bytes, hash)) = proof.tail() else {
        return Ok(None);
    };
    let segment = OpenSegment {
        name,
        size: work.size,
        major: root.content.major,
    };
    let repository = work.what.repository;
    // The check of the WAL finds the damaged segments and those that cannot be read.
    let is_own = stored_wal::has_prefix(repository, layout, &segment, (length_bytes, hash))?;
    Ok((!is_own).then_some(name))
}

fn first_pages(root: &BackupRoot) -> String {
    let pages: Vec<String> = root
        .content
        .damage
        .iter()
        .take(3)
        .map(|p| format!("{} block {} at {}", p.path, p.block, p.lsn))
        .collect();
    match pages.is_empty() {
        true => String::new(),
        false => format!(": {}", pages.join(", ")),
    }
}

/// Reads the list of relations. Without it nothing of the backup is lost, and programs that do not know it copy none.
fn check_relations(work: &Work<'_>, root: &BackupRoot) -> Result<()> {
    let Some(wanted) = &root.content.relations else {
        return Ok(());
    };
    let place = (&*work.layout, &root.head.id);
    let system_identifier = work.layout.system_identifier();
    match relations::open(work.store, place, system_identifier, wanted)? {
        Some(container) => {
            container.check_stored()?;
            container.read_body(&mut |_| Ok(()))?;
            work.count(container.stored_bytes());
        }
        None => work.warn(format!(
            "backup \"{}\" has no list of its relations any more: pitr find does without",
            root.head.id
        )),
    }
    Ok(())
}

fn server_manifest(
    work: &Work<'_>,
    root: &BackupRoot,
    extent: Extent,
) -> Result<Option<Container>> {
    let found = files::open_server_manifest(work, &root.head.id, extent)?;
    match (found, root.content.server_manifest.as_deref()) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            let key = work.layout.server_manifest(&root.head.id);
            let about = About::Backup(root.head.id.clone());
            let detail = "the server's manifest is missing";
            work.find(FindingKind::Missing, key.as_str(), detail, about);
            Ok(None)
        }
        (Some(container), wanted) => {
            check_hash(&container, wanted)?;
            Ok(Some(container))
        }
    }
}

/// The inspection of a cluster's files by the threads that read packs.
struct Files<'a> {
    work: &'a Work<'a>,
    root: &'a BackupRoot,
    snapshot: &'a Snapshot<'a>,
    sums: Option<&'a Sums>,
    pages: AtomicUsize,
}

fn read_files(
    work: &Work<'_>,
    root: &BackupRoot,
    (snapshot, chosen): (&Snapshot<'_>, Chosen<'_>),
    mapped: Mapped,
    manifest: Option<&Container>,
) -> Result<()> {
    let sums = manifest.map(|m| (m, Sums::new(&work.host.scratch)));
    let files = Files {
        work,
        root,
        snapshot,
        sums: sums.as_ref().map(|(_, sums)| sums),
        pages: AtomicUsize::new(0),
    };
    let (is_complete, compared) = std::thread::scope(|scope| -> Result<_> {
        let reader = sums.as_ref();
        let reader = reader.map(|(m, sums)| scope.spawn(|| sums.read(m, snapshot)));
        let read = read_packs(work, root.into(), (snapshot, chosen), mapped, &files);
        let compared = reader.map_or(Ok(Ok(())), |thread| thread.join().map_err(|_| panicked()));
        Ok((read?, compared?))
    })?;
    let key = work.layout.server_manifest(&root.head.id);
    let about = || About::Backup(root.head.id.clone());
    let is_compared = work.settle(compared, key.as_str(), about())?.is_some();
    if let Some((_, sums)) = sums.filter(|_| is_complete && is_compared) {
        let Compared {
            wrong,
            not_compared,
        } = sums.finish(*snapshot.naming());
        let more = wrong.count.saturating_sub(LISTED_MAX as u64);
        for wrong in wrong.listed.into_iter().take(LISTED_MAX) {
            work.find(FindingKind::Damaged, key.as_str(), wrong, about());
        }
        if more > 0 {
            work.find_more(FindingKind::Damaged, about(), more);
        }
        if let Some(e) = not_compared {
            work.warn(format!(
                "backup \"{}\": the checksums of the server's manifest were not compared: {e}. {}",
                root.head.id,
                e.hint_text().unwrap_or_default()
            ));
        }
    }
    Ok(())
}

impl Inspect for Files<'_> {
    fn frame(&self, frame: &VisibleFrame) {
        for visible in &frame.visible {
            let Some(file) = frame.file(visible) else {
                continue;
            };
            let bytes = frame.bytes(visible);
            if let Some(sums) = self.sums {
                sums.add(file, visible.position, bytes);
            }
            if self.root.content.data_checksums {
                self.pages(file, visible.position, bytes);
            }
        }
    }

    fn is_clean(&self, frame: &VisibleFrame) -> bool {
        // Without others that need the pages, nothing is to be known of those that are not visible.
        if !self.root.content.data_checksums || self.work.what.backup.is_some() {
            return true;
        }
        let frame = frame.frame();
        let mut rest = frame.raw.as_slice();
        frame.extents.iter().all(|extent| {
            let length = (extent.length as usize).min(rest.len());
            let (bytes, behind) = rest.split_at(length);
            rest = behind;
            let Some(first) = self.first_block(&extent.file, extent.position) else {
                return true;
            };
            let (pages, _) = bytes.as_chunks::<DEFAULT_PAGE_SIZE>();
            // A page that replay writes anew may be torn for one backup, and a fault for another one.
            let is_good = |(block, page): (u64, &[u8; DEFAULT_PAGE_SIZE])| {
                let state = datapage::check(page, page_number(block), None);
                !matches!(state, PageState::Bad { .. })
            };
            (first..).zip(pages).all(is_good)
        })
    }
}

/// The number of a page in its fork, as its checksum has it.
fn page_number(block: u64) -> u32 {
    u32::try_from(block).unwrap_or(u32::MAX)
}

impl Files<'_> {
    /// The server's own rule: pages from the start LSN on may be torn, replay writes them anew.
    fn pages(&self, file: &FileKey, position: u64, bytes: &[u8]) {
        let Some(first) = self.first_block(file, position) else {
            return;
        };
        let (pages, _) = bytes.as_chunks::<DEFAULT_PAGE_SIZE>();
        for (block, page) in (first..).zip(pages) {
            let start = Some(self.root.content.start_lsn);
            let state = datapage::check(page, page_number(block), start);
            if !matches!(state, PageState::Bad { .. }) || self.is_known(file, block) {
                continue;
            }
            let about = About::Backup(self.root.head.id.clone());
            if self.pages.fetch_add(1, Ordering::Relaxed) >= LISTED_MAX {
                self.work.find_more(FindingKind::Pages, about, 1);
                continue;
            }
            let path = file.path(self.snapshot.naming());
            let lsn = PageHeader::parse(page).map_or(Lsn::INVALID, |h| h.lsn);
            let detail = format!(
                "file \"{}\", block {block}, page LSN {lsn}: the page fails its checksum",
                String::from_utf8_lossy(&path)
            );
            let key = self.work.layout.manifest(&self.root.head.id);
            self.work
                .find(FindingKind::Pages, key.as_str(), detail, about);
        }
    }

    /// The block of its fork that a position in a file of a relation is in; `None` in other files.
    fn first_block(&self, file: &FileKey, position: u64) -> Option<u64> {
        let relation = file.relation()?;
        let before = u64::from(relation.segment) * u64::from(self.root.content.relseg_blocks);
        Some(before + position / DEFAULT_PAGE_SIZE as u64)
    }

    /// Whether the root lists the page, as damaged or as cut, or cannot list them all.
    fn is_known(&self, file: &FileKey, block: u64) -> bool {
        let path = file.path(self.snapshot.naming());
        let path = String::from_utf8_lossy(&path);
        let mut cut = self.root.content.cut_pages.iter();
        if cut.any(|page| page.block == block && page.path == path) {
            return true;
        }
        if !self.root.content.is_damaged() {
            return false;
        }
        self.root.content.damage_count > self.root.content.damage.len() as u64
            || self
                .root
                .content
                .damage
                .iter()
                .any(|p| p.block == block && p.path == path)
    }
}
