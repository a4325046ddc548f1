//! Who has what, as a picture that is drawn again and again: in place on a terminal, else every few
//! seconds.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressStyle};

/// Between two pictures where there is no terminal.
const PLAIN_PAUSE: Duration = Duration::from_secs(5);
/// Cells of a bar.
const BAR: u64 = 24;

pub(crate) struct Screen {
    started: Instant,
    plain: bool,
    drawn: Option<Instant>,
    rows: MultiProgress,
    bars: Vec<ProgressBar>,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            plain: !std::io::stderr().is_terminal(),
            drawn: None,
            rows: MultiProgress::new(),
            bars: Vec::new(),
        }
    }

    /// Says what has happened: above the picture, or as a line where there is no terminal.
    pub(crate) fn say(&self, what: &str) {
        let line = format!("{:6.2} s  {what}", self.started.elapsed().as_secs_f64());
        if self.bars.is_empty() || self.rows.println(&line).is_err() {
            println!("{line}");
        }
    }

    /// Draws the picture in the place of the last one.
    pub(crate) fn draw(&mut self, picture: &[String]) {
        if self.plain {
            if self.drawn.is_none_or(|it| it.elapsed() >= PLAIN_PAUSE) {
                self.print(picture);
            }
            return;
        }
        while self.bars.len() < picture.len() {
            let style = ProgressStyle::with_template("{wide_msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(1).with_style(style);
            self.bars.push(self.rows.add(bar));
        }
        for (bar, line) in self.bars.iter().zip(picture) {
            bar.set_message(line.clone());
        }
    }

    /// Draws the last picture, which stays.
    pub(crate) fn finish(&mut self, picture: &[String]) {
        self.bars.clear();
        let _ = self.rows.clear();
        self.print(picture);
    }

    fn print(&mut self, picture: &[String]) {
        println!("\n{}\n", picture.join("\n"));
        self.drawn = Some(Instant::now());
    }
}

/// A name, a bar, how many of how many, and what else there is to say.
pub(crate) fn row(name: &str, held: u64, of: u64, says: &str) -> String {
    let full = (held.min(of) * BAR).checked_div(of).unwrap_or(0);
    let bar = "█".repeat(full as usize) + &"░".repeat((BAR - full) as usize);
    let (held, of) = (HumanCount(held).to_string(), HumanCount(of).to_string());
    let line = format!("  {name:<12} {bar} {held:>7} of {of:<7} {says}");
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_full_when_everything_is_held_and_not_before() {
        let cells = |held, of| row("A", held, of, "").matches('█').count();
        assert_eq!([cells(0, 0), cells(0, 9), cells(9, 9)], [0, 0, 24]);
        assert_eq!([cells(2_999, 3_000), cells(4_000, 3_000)], [23, 24]);
    }
}
