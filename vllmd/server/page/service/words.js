/** Numbers, durations and times as people read them. */

const MINUTE = { hour: "2-digit", minute: "2-digit", hour12: false };
const CLOCK = new Intl.DateTimeFormat([], { ...MINUTE, second: "2-digit" });
const DAY = new Intl.DateTimeFormat([], { day: "numeric", month: "short", ...MINUTE });
const WHOLE = new Intl.NumberFormat([], { maximumFractionDigits: 0 });
const TENTHS = new Intl.NumberFormat([], { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** A duration: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `4 d 2 h`. */
export function duration(seconds) {
  if (seconds < 0.05) return "0 s";
  if (seconds < 0.95) return `${TENTHS.format(seconds)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return two(whole, 60, "min", "s");
  return whole < 86400 ? two(whole / 60, 60, "h", "min") : two(whole / 3600, 24, "d", "h");
}

/** How long ago something was: `just now`, `41 s ago`, `3 min ago`, `2 d ago`. */
export function ago(seconds) {
  if (seconds < 5) return "just now";
  return `${duration(seconds).split(" ").slice(0, 2).join(" ")} ago`;
}

/** An amount of memory: `0.3 GiB`, `14.2 GiB`, `137 GiB`. */
export function memory(bytes) {
  return `${rate(bytes / 2 ** 30)} GiB`;
}

function two(amount, size, large, small) {
  const rest = Math.floor(amount % size);
  return `${Math.floor(amount / size)} ${large}` + (rest ? ` ${rest} ${small}` : "");
}

/** The time of day of a moment, in Unix seconds. */
export function clock(at) {
  return CLOCK.format(new Date(at * 1000));
}

/** A moment in Unix seconds: the time of day, with the day if that is not today's. */
export function moment(at) {
  const date = new Date(at * 1000);
  return (date.toDateString() === new Date().toDateString() ? CLOCK : DAY).format(date);
}

/** A number that counts something. */
export function count(number) {
  return WHOLE.format(number);
}

/** A rate: `0`, `4.2`, `137`. */
export function rate(number) {
  return number === 0 || number >= 100 ? WHOLE.format(number) : TENTHS.format(number);
}

/** `1 request`, `3 requests`. */
export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** A part of one in percent: `0 %`, `0.4 %`, `34 %`. */
export function percent(part) {
  const number = part * 100;
  return `${number > 0 && number < 9.95 ? TENTHS.format(number) : WHOLE.format(number)} %`;
}
