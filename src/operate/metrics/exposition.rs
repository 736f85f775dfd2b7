//! Metrics as text: families of samples in the format that Prometheus and node_exporter read.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The type of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// It only grows.
    Counter,
    /// It is what it is now.
    Gauge,
    /// Counts of durations below bounds.
    Histogram,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        }
    }
}

/// Name, type and help of a family.
pub type Family = (&'static str, Type, &'static str);

/// Declares families: constant, type, name and help of each.
macro_rules! families {
    ($($vis:vis $constant:ident: $kind:ident $name:literal $help:literal;)+) => {
        $($vis const $constant: $crate::operate::metrics::exposition::Family =
            ($name, $crate::operate::metrics::exposition::Type::$kind, $help);)+
    };
}
pub(super) use families;

/// The samples of a family.
struct Series {
    kind: Type,
    help: &'static str,
    samples: Vec<String>,
}

/// All families, by name.
#[derive(Default)]
pub struct Exposition {
    families: BTreeMap<&'static str, Series>,
}

/// Labels of a sample, in the order in which they are written.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

impl Exposition {
    /// Adds a sample.
    pub fn add(&mut self, family: &Family, labels: Labels<'_>, value: f64) {
        self.sample(family, "", labels, value);
    }

    /// Adds a sample where the value is known: unknown is no series, and never 0.
    pub fn add_known(&mut self, family: &Family, labels: Labels<'_>, value: Option<f64>) {
        if let Some(value) = value {
            self.add(family, labels, value);
        }
    }

    /// Adds a sample whose name has an end, as those of histograms do.
    pub fn sample(
        &mut self,
        (name, kind, help): &Family,
        end: &str,
        labels: Labels<'_>,
        value: f64,
    ) {
        let family = self.families.entry(name).or_insert_with(|| Series {
            kind: *kind,
            help,
            samples: Vec::new(),
        });
        let labels = labels.iter();
        let shown = labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
        let shown = shown.collect::<Vec<_>>().join(",");
        let labels = match shown.is_empty() {
            true => String::new(),
            false => format!("{{{shown}}}"),
        };
        family.samples.push(format!("{name}{end}{labels} {value}"));
    }

    /// Writes everything.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, family) in &self.families {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {}", family.help);
            let _ = writeln!(text, "# TYPE {name} {}", family.kind.name());
            for sample in &family.samples {
                let _ = writeln!(text, "{sample}");
            }
        }
        text
    }
}

fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_family_stand_together_and_labels_are_escaped() {
        let mut all = Exposition::default();
        let up = ("up", Type::Gauge, "Whether.");
        all.add(&up, &[("a", "x\"y\\z\n")], 1.0);
        all.add(&("zero", Type::Counter, "None."), &[], 0.0);
        all.add(&up, &[], 0.5);
        all.add_known(&up, &[("a", "unknown")], None);
        assert_eq!(
            all.text(),
            "# HELP up Whether.\n# TYPE up gauge\nup{a=\"x\\\"y\\\\z\\n\"} 1\nup 0.5\n# HELP zero None.\n# TYPE zero counter\nzero 0\n"
        );
    }
}
