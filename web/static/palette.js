// Purpose: colours of lines. A unit has one colour on every page (by its place among all names), told apart by
// lightness too, and from the ninth unit on by dashes; colours come from the style sheet, so they follow the theme.

const COLOURS = 8;
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];

export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** `{colour, dash}` of the index-th line. */
export function line(index) {
  const dash = DASHES[Math.floor(index / COLOURS) % DASHES.length];
  return { colour: css(`--line-${(index % COLOURS) + 1}`), dash };
}

/** Call `listener` when the theme changes. */
export const onTheme = (listener) => document.addEventListener("themechange", listener);
