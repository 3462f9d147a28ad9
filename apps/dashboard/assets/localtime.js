const pad = (n) => String(n).padStart(2, "0");
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const MINUTE = 60e3, HOUR = 3600e3, DAY = 86400e3;
const STEPS = [1e3, 5e3, 15e3, 30e3, MINUTE, 5 * MINUTE, 10 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR,
  12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY];
const offset = (t) => new Date(t).getTimezoneOffset() * MINUTE;
const tickTimes = (start, end) => {
  const span = end - start, found = [], most = Math.max(3, Math.min(9, Math.floor(window.innerWidth / 140)));
  const step = STEPS.find((s) => span / s <= most);
  if (step === undefined) {
    const months = [1, 2, 3, 6, 12, 24, 60, 120].find((m) => span / (30.4 * DAY * m) <= most) || 240;
    const d = new Date(start);
    for (let m = Math.floor(d.getMonth() / months) * months, i = 0; i < 400; i++, m += months) {
      const t = new Date(d.getFullYear(), m, 1).getTime();
      if (t > end) break;
      if (t >= start) found.push(t);
    }
    return found;
  }
  for (let wall = Math.ceil((start - offset(start)) / step) * step; found.length < 50; wall += step) {
    let t = wall + offset(wall);
    t = wall + offset(t);
    if (t > end) break;
    if (t >= start) found.push(t);
  }
  return found;
};
const tickText = (t, all) => {
  const d = new Date(t), gap = all.length > 1 ? all[1] - all[0] : HOUR, first = all.length && t === all[0];
  const day = `${d.getDate()} ${MONTHS[d.getMonth()]}`;
  if (gap >= 27 * DAY) return d.getMonth() === 0 || first ? `${MONTHS[d.getMonth()]} ${d.getFullYear()}` : MONTHS[d.getMonth()];
  if (gap >= DAY) return day;
  const clock = `${pad(d.getHours())}:${pad(d.getMinutes())}` + (gap < MINUTE ? `:${pad(d.getSeconds())}` : "");
  return d.getHours() + d.getMinutes() + d.getSeconds() === 0 ? day : clock;
};
const localText = (t) => {
  const d = new Date(t);
  return `${d.getDate()} ${MONTHS[d.getMonth()]} ${d.getFullYear()}, ${pad(d.getHours())}:${pad(d.getMinutes())}:${pad(d.getSeconds())}`;
};
const utcText = (t) => new Date(t).toISOString().slice(0, 19).replace("T", " ");
