//! A strict reader of the two text formats of /metrics.
//!
//! Scrapers forgive much of what is wrong with such a text; this one forgives nothing, so that all
//! of them understand what the node writes. Read are Prometheus text 0.0.4 and OpenMetrics 1.0.0,
//! as far as the node uses them: counters, gauges and histograms, without exemplars and timestamps.

use std::collections::{BTreeMap, BTreeSet};

/// Which format a text is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

/// Labels in order of their names.
pub type Labels = Vec<(String, String)>;

/// What tells one sample from all others: its name, and its labels.
pub type Series = (String, Labels);

/// What a text says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exposition {
    /// Types of the families, by the names that their samples have (for histograms, begin with).
    pub types: BTreeMap<String, String>,
    /// The samples.
    pub samples: BTreeMap<Series, f64>,
}

impl Exposition {
    /// Reads a text.
    ///
    /// # Errors
    /// The first fault, with its line.
    pub fn parse(text: &str, format: Format) -> Result<Self, String> {
        let body = match format {
            Format::Prometheus => text,
            Format::OpenMetrics => text.strip_suffix("# EOF\n").ok_or("the end is not marked")?,
        };
        if !body.is_empty() && !body.ends_with('\n') {
            return Err("the last line has no end".to_owned());
        }
        let mut reader = Reader { format, all: Self::default(), family: None };
        for line in body.lines() {
            reader.line(line).map_err(|fault| format!("{fault}: {line:?}"))?;
        }
        reader.end_family()?;
        reader.check_names()?;
        Ok(reader.all)
    }

    /// The sum of all samples of that name.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        let of_name = self.samples.iter().filter(|((known, _), _)| known == name);
        of_name.map(|(_, value)| value).sum()
    }

    /// Series of counters that are lower than they were in `before`, or gone.
    #[must_use]
    pub fn fallen_since(&self, before: &Self) -> Vec<Series> {
        let fell = before.samples.iter().filter(|(series, value)| {
            before.only_grows(&series.0) && self.samples.get(*series).is_none_or(|now| now < *value)
        });
        fell.map(|(series, _)| series.clone()).collect()
    }

    fn only_grows(&self, name: &str) -> bool {
        let is = |name: &str, kind: &str| self.types.get(name).is_some_and(|known| known == kind);
        let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        is(name, "counter") || stem.is_some_and(|stem| is(stem, "histogram"))
    }
}

struct Family {
    /// As in the text.
    name: String,
    kind: String,
    has_help: bool,
    /// Of a histogram, by labels without `le`: upper ends and counts, the sum, the count.
    histograms: BTreeMap<Labels, Buckets>,
    is_empty: bool,
}

#[derive(Default)]
struct Buckets {
    ends: Vec<(f64, f64)>,
    sum: Option<f64>,
    count: Option<f64>,
}

struct Reader {
    format: Format,
    all: Exposition,
    family: Option<Family>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let Some(comment) = line.strip_prefix("# ") else { return self.sample(line) };
        let (word, rest) = comment.split_once(' ').ok_or("no word after the hash")?;
        let (name, text) = rest.split_once(' ').ok_or("nothing behind the name")?;
        if !is_name(name) {
            return Err("no name of a family".to_owned());
        }
        match word {
            "HELP" => {
                let is_new = self.family.as_ref().is_none_or(|family| family.name != name);
                if !is_new || text.is_empty() || text.contains(['\\', '"']) {
                    return Err("help that is late, empty or not escaped".to_owned());
                }
                self.end_family()?;
                self.family = Some(Family {
                    name: name.to_owned(),
                    kind: String::new(),
                    has_help: true,
                    histograms: BTreeMap::new(),
                    is_empty: true,
                });
                Ok(())
            }
            "TYPE" => self.type_line(name, text),
            _ => Err("a comment that says nothing".to_owned()),
        }
    }

    fn type_line(&mut self, name: &str, kind: &str) -> Result<(), String> {
        let family = self.family.as_mut().filter(|family| family.name == name && family.has_help);
        let family = family.ok_or("a type without help before it")?;
        if !family.kind.is_empty() || !["counter", "gauge", "histogram"].contains(&kind) {
            return Err("a second or unknown type".to_owned());
        }
        kind.clone_into(&mut family.kind);
        let shown = match (kind, self.format) {
            ("counter", Format::OpenMetrics) if name.ends_with("_total") => {
                return Err("OpenMetrics names no family of counters _total".to_owned());
            }
            ("counter", Format::OpenMetrics) => format!("{name}_total"),
            ("counter", Format::Prometheus) if !name.ends_with("_total") => {
                return Err("a counter whose name does not end in _total".to_owned());
            }
            _ => name.to_owned(),
        };
        let twice = self.all.types.insert(shown, kind.to_owned()).is_some();
        if twice { Err("a family twice".to_owned()) } else { Ok(()) }
    }

    fn sample(&mut self, line: &str) -> Result<(), String> {
        let end = line.find(['{', ' ']).ok_or("no value")?;
        let (name, rest) = line.split_at(end);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Vec::new(), rest),
        };
        let value = rest.strip_prefix(' ').ok_or("no blank before the value")?;
        let value: f64 = value.parse().map_err(|_| "no number")?;
        let family = self.family.as_mut().ok_or("a sample without a family")?;
        family.is_empty = false;
        let kind = family.kind.clone();
        let suffix = name.strip_prefix(family.name.as_str());
        let is_counter = kind == "counter" && self.format == Format::OpenMetrics;
        match (kind.as_str(), suffix) {
            ("counter", Some("_total")) if is_counter => {}
            ("counter", Some("")) if !is_counter => {}
            ("gauge", Some("")) => {}
            ("histogram", Some(suffix @ ("_bucket" | "_sum" | "_count"))) => {
                note_bucket(family, suffix, &labels, value)?;
            }
            _ => return Err("a sample of another family, or without a type".to_owned()),
        }
        if kind != "gauge" && (value.is_nan() || value < 0.0) {
            return Err("a count below zero".to_owned());
        }
        let twice = self.all.samples.insert((name.to_owned(), labels), value).is_some();
        if twice { Err("a series twice".to_owned()) } else { Ok(()) }
    }

    fn end_family(&mut self) -> Result<(), String> {
        let Some(Family { name, histograms, is_empty, .. }) = self.family.take() else {
            return Ok(());
        };
        if is_empty {
            return Err(format!("no samples of {name}"));
        }
        for (labels, Buckets { ends, sum, count }) in histograms {
            let rises = ends.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1);
            let last = ends.last().filter(|(end, _)| *end == f64::INFINITY);
            if !rises || sum.is_none() || last.is_none_or(|(_, total)| Some(*total) != count) {
                return Err(format!("buckets of {name}{labels:?} do not fit together"));
            }
        }
        Ok(())
    }

    /// No sample may be taken for one of another family.
    fn check_names(&self) -> Result<(), String> {
        for (name, kind) in &self.all.types {
            let taken: &[&str] = match kind.as_str() {
                "counter" => &["_created"],
                "histogram" => &["_bucket", "_sum", "_count", "_created"],
                _ => &[],
            };
            let stem = name.strip_suffix("_total").filter(|_| kind == "counter");
            let clash = taken.iter().map(|end| format!("{}{end}", stem.unwrap_or(name)));
            let clash: BTreeSet<String> = clash.chain(stem.map(str::to_owned)).collect();
            if let Some(other) = self.all.types.keys().find(|other| clash.contains(*other)) {
                return Err(format!("{name} and {other} are too much alike"));
            }
        }
        Ok(())
    }
}

fn note_bucket(
    family: &mut Family,
    suffix: &str,
    labels: &[(String, String)],
    value: f64,
) -> Result<(), String> {
    let (ends, others): (Vec<_>, Vec<_>) = labels.iter().cloned().partition(|(n, _)| n == "le");
    let buckets = family.histograms.entry(others).or_default();
    let slot = match (suffix, ends.first()) {
        ("_bucket", Some((_, end))) => {
            let end = end.parse().map_err(|_| "a bucket whose end is no number")?;
            buckets.ends.push((end, value));
            return Ok(());
        }
        ("_sum", None) => &mut buckets.sum,
        ("_count", None) => &mut buckets.count,
        _ => return Err("a bucket without an end, or an end without a bucket".to_owned()),
    };
    *slot = Some(value);
    Ok(())
}

fn is_name(name: &str) -> bool {
    let sound = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    sound && !name.is_empty() && !name.as_bytes()[0].is_ascii_digit()
}

/// Reads labels behind the opening bracket; what follows the closing one is given back.
fn labels(mut rest: &str) -> Result<(Labels, &str), String> {
    let mut labels = Vec::new();
    loop {
        let (name, after) = rest.split_once("=\"").ok_or("no label")?;
        if !is_name(name) || name.starts_with("__") {
            return Err("no name of a label".to_owned());
        }
        let mut value = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next().ok_or("a label without an end")? {
                (at, '"') => break at,
                (_, '\\') => value.push(match letters.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, letter @ ('\\' | '"'))) => letter,
                    _ => return Err("an unknown escape".to_owned()),
                }),
                (_, letter) => value.push(letter),
            }
        };
        labels.push((name.to_owned(), value));
        let after = &after[end + 1..];
        if let Some(after) = after.strip_prefix('}') {
            labels.sort();
            let twice = labels.windows(2).any(|two| two[0].0 == two[1].0);
            return if twice { Err("a label twice".to_owned()) } else { Ok((labels, after)) };
        }
        rest = after.strip_prefix(',').ok_or("no comma between labels")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "# HELP a_total A\n# TYPE a_total counter\n\
                         a_total{x=\"1\",y=\"\\\\\\\"\\n\"} 3\n\
                         a_total{x=\"2\"} 4.5\n# HELP b B b\n# TYPE b gauge\nb -1\n\
                         # HELP h H\n# TYPE h histogram\nh_sum 2\nh_count 3\n\
                         h_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 3\n";

    #[test]
    fn sound_text_is_read() {
        let read = Exposition::parse(SOUND, Format::Prometheus).unwrap();
        assert_eq!(read.sum("a_total"), 7.5);
        let labels = |x: &str, y: &str| vec![("x".into(), x.into()), ("y".into(), y.into())];
        assert_eq!(read.samples[&("a_total".to_owned(), labels("1", "\\\"\n"))], 3.0);
        assert_eq!(read.types["b"], "gauge");
        let open = SOUND.replace("HELP a_total", "HELP a").replace("TYPE a_total", "TYPE a");
        let open = Exposition::parse(&(open + "# EOF\n"), Format::OpenMetrics).unwrap();
        assert_eq!(open, read);
    }

    #[test]
    fn what_falls_is_found() {
        let before = Exposition::parse(SOUND, Format::Prometheus).unwrap();
        let after = SOUND.replace("b -1", "b -2").replace("4.5", "4");
        let after = Exposition::parse(&after, Format::Prometheus).unwrap();
        let fallen = after.fallen_since(&before);
        assert_eq!(fallen, [("a_total".to_owned(), vec![("x".to_owned(), "2".to_owned())])]);
        assert!(before.fallen_since(&after).is_empty());
    }

    #[test]
    fn faults_are_named() {
        for (from, to) in [
            ("b -1\n", "b -1"),
            ("b -1\n", "b -1\n\n"),
            ("b -1\n", "b -1\nb 2\n"),
            ("b -1\n", "b -1 17\n"),
            ("b -1\n", "b x\n"),
            ("b -1\n", ""),
            ("b -1\n", "c 1\n"),
            ("# TYPE b gauge\n", ""),
            ("# HELP b B b\n", ""),
            ("b gauge", "b summary"),
            ("b gauge", "b gauge\n# TYPE b gauge"),
            ("x=\"2\"", "x=\"2\",x=\"3\""),
            ("x=\"2\"", "x=2"),
            ("x=\"2\"", "1x=\"2\""),
            ("x=\"2\"", "x=\"2\" y=\"3\""),
            ("x=\"2\"", "x=\"\\q\""),
            ("4.5", "-4.5"),
            ("a_total", "a"),
            ("h_count 3", "h_count 4"),
            ("h_sum 2\n", ""),
            ("le=\"0.5\"} 1", "le=\"0.5\"} 4"),
            ("h_bucket{le=\"+Inf\"} 3\n", ""),
            (" b ", " h_sum "),
        ] {
            let text = SOUND.replace(from, to);
            assert_ne!(text, SOUND, "{from}");
            let found = Exposition::parse(&text, Format::Prometheus);
            assert!(found.is_err(), "{from:?} to {to:?}");
        }
        assert!(Exposition::parse(SOUND, Format::OpenMetrics).is_err());
        let late = SOUND.to_owned() + "# EOF\n";
        assert!(Exposition::parse(&late, Format::Prometheus).is_err());
        assert!(Exposition::parse(&late, Format::OpenMetrics).is_err(), "a_total is a family");
    }
}
