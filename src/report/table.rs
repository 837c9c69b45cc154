//! Tables for a terminal.

use comfy_table::{CellAlignment, ColumnConstraint, LineStyle, Table, TableStyle, Width};

/// Columns of space beside what a column has, and between two columns.
const PADDING: usize = 2;
const BETWEEN: usize = 1;
/// The most letters of a word that tables show whole, and how many of its begin and end they show otherwise.
const WHOLE: usize = 200;
const BEGIN: usize = 120;
const END: usize = 60;
/// How far the rest of a path stands behind its begin.
const INDENT: &str = "  ";

/// Returns a table whose columns from `numbers` on are right-aligned.
pub(crate) fn table(header: &[&str], numbers: usize) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header(header.to_vec());
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Shortens words of more than [`WHOLE`] letters, as names of thousands of modules are, in the middle.
pub(crate) fn shortened(text: &str) -> String {
    let mut short = String::new();
    for word in text.split_inclusive(char::is_whitespace) {
        let letters = word.chars().count();
        if letters <= WHOLE {
            short.push_str(word);
        } else {
            short.extend(word.chars().take(BEGIN));
            short.push('…');
            short.extend(word.chars().skip(letters - END));
        }
    }
    short
}

/// Cells of a table whose first column has paths.
pub(crate) struct Cells<'a> {
    pub(crate) header: &'a [&'a str],
    pub(crate) rows: Vec<Vec<String>>,
    /// The columns that can be missed where the terminal is narrow, the first one to go first.
    pub(crate) spare: &'a [usize],
}

impl Cells<'_> {
    /// Returns whether the table fits into `width` columns as it is.
    pub(crate) fn fit(&self, width: Option<u16>) -> bool {
        let all: Vec<usize> = (0..self.header.len()).collect();
        let wide = |column: &usize| self.widest(*column, |text| text.chars().count());
        width.is_none_or(|width| total(all.iter().map(wide)) <= usize::from(width))
    }

    /// Returns the table, no wider than `width` columns if that is possible: spare columns are left out, texts are broken
    /// between words, and paths at their points.
    pub(crate) fn table(&self, numbers: usize, width: Option<u16>) -> Table {
        let mut shown: Vec<usize> = (0..self.header.len()).collect();
        let mut made = table(self.header, numbers);
        let Some(width) = width.map(usize::from).filter(|_| !self.fit(width)) else {
            made.add_rows(&self.rows);
            return made;
        };
        let least = |column: &usize| match column {
            0 => self.widest(0, longest_segment),
            column => self.widest(*column, longest_word),
        };
        for column in self.spare {
            if total(shown.iter().map(least)) > width {
                shown.retain(|known| known != column);
            }
        }
        let others = |wide: fn(&str) -> usize| {
            let wide = shown.iter().skip(1).map(|column| self.widest(*column, wide));
            total(std::iter::once(0).chain(wide))
        };
        // Texts are broken only where paths cannot be short enough.
        let is_whole = others(|text| text.chars().count()) + least(&0) <= width;
        let rest = if is_whole { others(|text| text.chars().count()) } else { others(longest_word) };
        let room = width.saturating_sub(rest).max(least(&0)).min(self.widest(0, |text| text.chars().count()));
        for row in &self.rows {
            let mut row = row.clone();
            if let Some(path) = row.first_mut() {
                *path = broken(path, room);
            }
            made.add_row(row);
        }
        made.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
        made.set_width(u16::try_from(width).unwrap_or(u16::MAX));
        for (at, column) in made.column_iter_mut().enumerate() {
            let fixed = |wide: usize| Width::Fixed(u16::try_from(wide + PADDING).unwrap_or(u16::MAX));
            column.set_constraint(match (at, shown.contains(&at)) {
                (_, false) => ColumnConstraint::Hidden,
                (0, true) => ColumnConstraint::Absolute(fixed(room)),
                (at, true) => ColumnConstraint::LowerBoundary(fixed(self.widest(at, longest_word))),
            });
        }
        made
    }

    /// Returns the greatest width, by `wide`, of the cells in a column.
    fn widest(&self, column: usize, wide: impl Fn(&str) -> usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column)).map(String::as_str);
        cells.chain(self.header.get(column).copied()).map(wide).max().unwrap_or(0)
    }
}

/// Returns how wide a table of columns is.
fn total(columns: impl Iterator<Item = usize>) -> usize {
    columns.map(|column| column + PADDING + BETWEEN).sum::<usize>().saturating_sub(BETWEEN)
}

fn longest_word(text: &str) -> usize {
    text.split_whitespace().map(|word| word.chars().count()).max().unwrap_or(0)
}

/// Returns how wide the widest piece of a broken path is.
fn longest_segment(path: &str) -> usize {
    broken(path, 0).lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// Breaks a path before its points into lines of at most `room` letters, where that is possible.
fn broken(path: &str, room: usize) -> String {
    let name = path.trim_start();
    let indent = path.get(..path.len() - name.len()).unwrap_or_default();
    let mut lines: Vec<String> = Vec::new();
    let mut line = indent.to_string();
    let starts = name.match_indices('.').map(|(at, _)| at).filter(|at| *at > 0);
    let ends = starts.clone().chain([name.len()]);
    for (start, end) in std::iter::once(0).chain(starts).zip(ends) {
        let segment = name.get(start..end).unwrap_or_default();
        let is_number = segment.trim_start_matches('.').bytes().all(|byte| byte.is_ascii_digit());
        // A number stays beside what it counts.
        let is_first = line.trim_start().is_empty();
        if !is_first && !is_number && line.chars().count() + segment.chars().count() > room {
            lines.push(std::mem::replace(&mut line, format!("{indent}{INDENT}")));
        }
        line.push_str(segment);
    }
    lines.push(line);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_broken_at_points_and_lose_nothing() {
        let path = "  down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q";
        let lines = broken(path, 30);
        assert_eq!(lines, "  down_blocks.0.attentions.1\n    .transformer_blocks.0\n    .attn1.to_q");
        assert_eq!(lines.split_whitespace().collect::<String>(), path.trim());
        assert_eq!(broken("time_embedding.linear_1", 20), "time_embedding\n  .linear_1");
        assert_eq!(broken("conv_in", 3), "conv_in");
    }

    #[test]
    fn long_words_keep_begin_and_end() {
        let long = format!("node `{}z` is\n  none", "/ä".repeat(5_000));
        let short = shortened(&long);
        assert!(short.starts_with("node `/ä/ä") && short.ends_with("/äz` is\n  none"), "{short}");
        assert_eq!(short.chars().count(), "node ".len() + BEGIN + 1 + END + " is\n  none".len() - 1);
        assert_eq!(shortened("a.b  c\n"), "a.b  c\n");
    }

    #[test]
    fn narrow_tables_leave_out_what_can_be_missed_and_break_no_word() {
        let row =
            ["down_blocks.0.attentions.0", "transformer block", "1,234,567"].map(str::to_string).to_vec();
        let cells = Cells { header: &["bypassed", "kind", "parameters gone"], rows: vec![row], spare: &[1] };
        let lines = |width| {
            let table = cells.table(2, Some(width)).to_string();
            let widest = table.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= usize::from(width), "{widest}: {table}");
            table
        };
        assert!(lines(80).contains(" down_blocks.0.attentions.0   transformer block "));
        let narrow = lines(48);
        for word in ["down_blocks.0", ".attentions.0", "transformer", "block", "parameters", "1,234,567"] {
            assert!(narrow.contains(word), "{word}: {narrow}");
        }
        let narrowest = lines(32);
        assert!(!narrowest.contains("kind") && narrowest.contains(".attentions.0"), "{narrowest}");
    }
}
