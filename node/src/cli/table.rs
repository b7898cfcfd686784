//! Tables for people: columns in line, separated by two blanks.

/// Puts rows below their titles. `right` says of each column whether it is right-aligned; further
/// cells of a row are left out.
pub(super) fn aligned(titles: &[&str], right: &[bool], rows: &[Vec<String>]) -> String {
    let title_row: Vec<String> = titles.iter().map(|title| (*title).to_owned()).collect();
    let mut widths: Vec<usize> = titles.iter().map(|title| title.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&title_row).chain(rows) {
        let mut line = String::new();
        for ((cell, width), right) in row.iter().zip(&widths).zip(right) {
            let blanks = " ".repeat(width - cell.chars().count());
            let (before, after) = if *right { (&*blanks, "") } else { ("", &*blanks) };
            line = line + before + cell + after + "  ";
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
