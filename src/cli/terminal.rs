//! Progress on standard error: a bar on a terminal, a line now and then otherwise.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::operate::human;
use crate::progress::{Measured, Meter, Progress};
use crate::text::escaped;

/// A phase that is over before that never shows.
const DELAY: Duration = Duration::from_millis(250);
/// The interval at which a long phase reports its progress if no bar can be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows progress as the output wants it.
pub struct TerminalProgress {
    quiet: bool,
    bars: bool,
    phase: Mutex<Option<Phase>>,
    /// Measures also where nothing is shown: other processes ask.
    meter: Meter,
}

struct Phase {
    name: String,
    total_bytes: Option<u64>,
    done_bytes: u64,
    started: Instant,
    last_line: Instant,
    said_anything: bool,
    bar: Option<ProgressBar>,
}

impl TerminalProgress {
    /// Progress without notes where it is to be quiet, and with bars where the terminal wants them.
    pub fn new(quiet: bool, bars: bool) -> TerminalProgress {
        TerminalProgress {
            quiet,
            bars,
            phase: Mutex::new(None),
            meter: Meter::default(),
        }
    }

    /// Shows one line that is replaced by the next one, where bars are drawn; elsewhere nothing.
    pub fn show_line(&self, text: &str) {
        if !self.bars {
            return;
        }
        let Ok(mut phase) = self.phase.lock() else {
            return;
        };
        let phase = phase.get_or_insert_with(|| Phase::new(String::new(), None, Some(line_bar())));
        if let Some(bar) = &phase.bar {
            bar.set_message(escaped(text));
        }
    }

    /// Ends the phase: the bar goes away, a phase that had lines gets its last one.
    pub fn end(&self) {
        let Some(phase) = self.phase.lock().ok().and_then(|mut p| p.take()) else {
            return;
        };
        match &phase.bar {
            Some(bar) => bar.finish_and_clear(),
            None if phase.said_anything => standard_error(&phase.line(Instant::now())),
            None => {}
        }
    }

    fn say(&self, line: &str) {
        let bar = self.phase.lock().ok().and_then(|p| p.as_ref()?.bar.clone());
        match bar {
            Some(bar) => bar.suspend(|| standard_error(line)),
            None => standard_error(line),
        }
    }
}

impl Progress for TerminalProgress {
    fn phase(&self, name: &str, total: Option<u64>) {
        self.end();
        self.meter.phase(name, total);
        if self.quiet {
            return;
        }
        let name = escaped(name);
        if let Ok(mut phase) = self.phase.lock() {
            let bar = self.bars.then(|| hidden_bar(&name, total));
            *phase = Some(Phase::new(name, total, bar));
        }
    }

    fn measured(&self) -> Option<Measured> {
        self.meter.read()
    }

    fn advance(&self, bytes: u64) {
        self.meter.advance(bytes);
        let Ok(mut guard) = self.phase.lock() else {
            return;
        };
        let Some(phase) = guard.as_mut() else { return };
        phase.done_bytes += bytes;
        let now = Instant::now();
        if let Some(bar) = &phase.bar {
            bar.inc(bytes);
            if bar.is_hidden() && now.duration_since(phase.started) >= DELAY {
                bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
                bar.enable_steady_tick(DELAY);
            }
        } else if now.duration_since(phase.last_line) >= LINE_INTERVAL {
            phase.last_line = now;
            phase.said_anything = true;
            standard_error(&phase.line(now));
        }
    }

    fn note(&self, message: &str) {
        if !self.quiet {
            self.say(&format!("{}\n", escaped(message)));
        }
    }

    fn warn(&self, message: &str) {
        self.say(&format!("warning: {}\n", escaped(message)));
    }
}

impl Drop for TerminalProgress {
    fn drop(&mut self) {
        self.end();
    }
}

impl Phase {
    fn new(name: String, total_bytes: Option<u64>, bar: Option<ProgressBar>) -> Phase {
        let now = Instant::now();
        Phase {
            name,
            total_bytes,
            done_bytes: 0,
            started: now,
            last_line: now,
            said_anything: false,
            bar,
        }
    }

    fn line(&self, now: Instant) -> String {
        let elapsed = now.duration_since(self.started);
        let done = human::size(self.done_bytes);
        let of = match self.total_bytes {
            Some(total) if total > 0 => {
                let percent = u128::from(self.done_bytes) * 100 / u128::from(total);
                format!("{done} of {} ({percent}%)", human::size(total))
            }
            _ => done,
        };
        let rate_bytes_per_s = u128::from(self.done_bytes) * 1000 / elapsed.as_millis().max(1);
        format!(
            "{}: {of} in {}, {}/s\n",
            self.name,
            human::duration(elapsed),
            human::size(u64::try_from(rate_bytes_per_s).unwrap_or(u64::MAX))
        )
    }
}

/// A bar that counts from the start of its phase, so that its rate is right once it is shown.
fn hidden_bar(name: &str, total_bytes: Option<u64>) -> ProgressBar {
    let template = match total_bytes {
        Some(_) => {
            "{prefix} [{bar:20}] {percent}% {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left"
        }
        None => "{prefix} {spinner} {binary_bytes}, {binary_bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::with_draw_target(total_bytes, ProgressDrawTarget::hidden())
        .with_style(style)
        .with_prefix(name.to_owned())
}

/// A bar that is one line of text.
fn line_bar() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
}

/// Writes to standard error; nobody hears when that fails.
pub(super) fn standard_error(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_much_of_what_and_how_fast() {
        let mut phase = Phase::new("copy".into(), Some(4 << 30), None);
        let started = phase.started;
        phase.done_bytes = 1 << 30;
        let now = started + Duration::from_secs(8);
        assert_eq!(
            phase.line(now),
            "copy: 1.0 GiB of 4.0 GiB (25%) in 8 s, 128.0 MiB/s\n"
        );
        phase.total_bytes = None;
        assert_eq!(phase.line(now), "copy: 1.0 GiB in 8 s, 128.0 MiB/s\n");
        phase.total_bytes = Some(0);
        phase.done_bytes = 0;
        assert_eq!(phase.line(started), "copy: 0 B in 0 ms, 0 B/s\n");
    }
}
