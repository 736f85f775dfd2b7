//! How well `pitr plan` tells how long recovery takes: `make estimates`.
//!
//! A cluster grows and is backed up, and each backup is drilled. Before each drill the plan estimates it. A control copy beside each drill
//! tells how fast the machine is at that time, and estimates are normalised by it. Three drills are for learning, the others are judged.

use std::io::Write;
use std::time::Instant;

use crate::common::{Sandbox, Site, bin};

/// Drills before the first that is judged.
const LEARNT: usize = 3;
/// The control copies so many bytes.
const CONTROL_BYTES: usize = 64 << 20;

/// The milliseconds of a copy that has nothing to do with pitr.
fn control(folder: &Sandbox) -> f64 {
    let (from, to) = (folder.join("control"), folder.join("control.copy"));
    if !from.exists() {
        std::fs::write(&from, vec![7_u8; CONTROL_BYTES]).unwrap();
    }
    let began = Instant::now();
    let bytes = std::fs::read(&from).unwrap();
    let mut file = std::fs::File::create(&to).unwrap();
    file.write_all(&bytes).unwrap();
    file.sync_all().unwrap();
    std::fs::remove_file(&to).unwrap();
    began.elapsed().as_secs_f64() * 1000.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// In `make test` one drill is judged, by a wide margin: tests beside it disturb it. `PITR_ESTIMATES=N` judges N, by 20 %.
#[test]
fn y28_after_three_drills_the_plan_tells_how_long_the_next_takes() {
    let judged: Option<usize> = std::env::var("PITR_ESTIMATES")
        .ok()
        .map(|text| text.parse().unwrap());
    // The sizes change from drill to drill, and those that are judged lie among and beyond those that were learnt.
    let sizes = [40_000, 10_000, 100_000, 60_000, 25_000, 140_000];
    let (site, cluster) = Site::with_cluster(17);
    let (folder, copies) = (Sandbox::new("drills"), Sandbox::new("control"));
    let programs = bin(17, "initdb").unwrap();
    let (mut controls, mut errors) = (Vec::new(), Vec::new());
    for (n, rows) in sizes
        .iter()
        .cycle()
        .take(LEARNT + judged.unwrap_or(1))
        .enumerate()
    {
        let filled = format!(
            "insert into t select g, repeat(md5(g::text), 10) from generate_series(1, {rows}) g"
        );
        cluster.sql(&format!(
            "drop table if exists t; create table t (a int, b text); {filled}"
        ));
        site.pitr().words("backup --quiet").succeed();
        // WAL of another size than the files.
        let later = sizes[(n + 2) % sizes.len()] / 2;
        cluster.sql(&format!(
            "insert into t select g, repeat('x', 300) from generate_series(1, {later}) g"
        ));
        cluster.archive_now();
        let plan = site.pitr().words("plan --json").succeed().json();
        let told = plan["estimate"]["ms"].as_f64().unwrap();
        let before = control(&copies);
        let drill = site.pitr().words("drill --json --dir");
        let drill = drill.arg(folder.path()).arg("--bin");
        let run = drill.arg(programs.parent().unwrap()).succeed();
        let beside = before.midpoint(control(&copies));
        let recovery = ["plan", "copy", "start", "replay", "checkpoint"];
        let json = run.json();
        let phases = json["phases"].as_array().unwrap().iter();
        let took: f64 = phases
            .filter(|p| recovery.contains(&p["phase"].as_str().unwrap()))
            .map(|p| p["ms"].as_f64().unwrap())
            .sum();
        if n >= LEARNT {
            assert_eq!(plan["estimate"]["drills"].as_u64(), Some(n.min(9) as u64));
            let speed = beside / median(controls.clone());
            let error = told * speed / took - 1.0;
            let plain = told / took - 1.0;
            println!(
                "drill {n}: {rows} rows, took {took:.0} ms, told {told:.0} ms ({:+.0} %), normalised by {speed:.2}: {:+.0} %",
                plain * 100.0,
                error * 100.0
            );
            errors.push((error, plain));
        }
        controls.push(beside);
    }
    let Some(judged) = judged else {
        // As slow or as fast as another machine, but no default.
        let (_, plain) = errors[0];
        assert!((-0.8..4.0).contains(&plain), "{plain}");
        return;
    };
    let within =
        |of: &dyn Fn(&(f64, f64)) -> f64| errors.iter().filter(|e| of(e).abs() <= 0.2).count();
    let (good, plain) = (within(&|e| e.0), within(&|e| e.1));
    println!("within 20 %: {good} of {judged} normalised, {plain} as told");
    assert!(good * 10 >= judged * 9, "{good} of {judged}");
}
