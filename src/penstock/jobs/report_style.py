"""The style sheet of a report: one for light and dark, for a phone and a desk.

Owns every colour and length on the page. A chart names its shapes by class; `--tone` is the colour of a class.
"""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper: #f7f6f2; --card: #ffffff; --ink: #22262b; --quiet: #666c74; --rule: #e4e1d9; --faint: #f1efe9;
  --blue: #3f74b8; --amber: #d9822b; --green: #4e9a6b; --violet: #8465ad; --red: #bf4d38;
  --grey1: #8d96a0; --grey2: #b3a68e; --grey3: #7fa3a0; --grey4: #b58ea4; --grey5: #a9aeb4; --grey6: #cfccc4;
  --on-tone: #ffffff; --own: color-mix(in oklab, var(--amber) 30%, var(--card)); }
@media (prefers-color-scheme: dark) { :root {
  --paper: #15181c; --card: #1d2126; --ink: #e4e6e8; --quiet: #9aa1a9; --rule: #30363d; --faint: #262b31;
  --blue: #6f9fdc; --amber: #e3a05a; --green: #6fb98b; --violet: #ab90d4; --red: #dc7a66;
  --grey1: #7f8a96; --grey2: #92866f; --grey3: #5f8784; --grey4: #966f85; --grey5: #6c737b; --grey6: #4a5057;
  --on-tone: #14171a; --own: color-mix(in oklab, var(--amber) 48%, var(--card)); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 24px 56px; }
.kind { margin: 0; color: var(--quiet); font-size: 13px; letter-spacing: 0.04em; }
h1 { margin: 2px 0 18px; font-size: 21px; font-weight: 600; overflow-wrap: anywhere; }
h2 { margin: 0 0 2px; font-size: 16px; font-weight: 600; }
.headline { margin: 0 0 8px; max-width: 34em; font-size: clamp(21px, 3.1vw, 32px); line-height: 1.3; font-weight: 500;
  letter-spacing: -0.01em; text-wrap: pretty; }
.headline b { font-weight: 650; }
.quiet, figcaption, .lead { color: var(--quiet); font-size: 14px; }
.lead { margin: 0 0 14px; max-width: 76em; }
p.quiet { margin: 8px 0 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 1px; margin: 26px 0 16px;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 10px; overflow: hidden; }
.tiles div { background: var(--card); padding: 14px 18px; }
.tiles dt { color: var(--quiet); font-size: 13px; }
.tiles dd { margin: 0; font-size: 22px; font-weight: 600; line-height: 1.35; }
.tiles dd.quiet { font-size: 13px; font-weight: 400; line-height: 1.4; }
.cards { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
section { grid-column: 1 / -1; min-width: 0; background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; padding: 20px 24px 22px; }
section.half { grid-column: auto; display: flex; flex-direction: column; }
.half .chart { flex: 1; display: flex; flex-direction: column; }
.half .chart .plot { flex: 1; }
figure { margin: 0; }
svg { position: absolute; inset: 0; width: 100%; height: 100%; display: block; overflow: visible; }
.plot { position: relative; height: 250px; margin: 24px 6px 30px 46px; }
.strip .plot { height: 84px; }
.half .plot { height: auto; min-height: 190px; max-height: 300px; }
.plot span { position: absolute; color: var(--quiet); font-size: 12px; line-height: 1; white-space: nowrap; }
.plot .y { right: calc(100% + 8px); transform: translateY(-50%); }
.plot .x { top: calc(100% + 9px); transform: translateX(-50%); }
.plot .x.first { transform: none; }
.plot .x.last { transform: translateX(-100%); }
.plot .marked { bottom: calc(100% + 5px); transform: translateX(-50%); background: var(--card); padding: 0 3px; }
.plot .marked.first { transform: none; }
.plot .marked.last { transform: translateX(-100%); }
.grid { stroke: var(--rule); stroke-width: 1; vector-effect: non-scaling-stroke; fill: none; }
.mark { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 2 3; vector-effect: non-scaling-stroke; fill: none; }
.line { stroke: var(--tone); stroke-width: 2; stroke-linejoin: round; vector-effect: non-scaling-stroke; fill: none; }
.fill { fill: var(--tone); background: var(--tone); }
.bar { fill: var(--blue); }
.bar:hover { fill: var(--amber); }
.hint { fill: transparent; }
.hint:hover { fill: var(--ink); opacity: 0.07; }
.own-key { --tone: var(--own); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--quiet); }
.key::before { content: ""; display: inline-block; width: 11px; height: 11px; margin-right: 7px; border-radius: 3px;
  background: var(--tone); vertical-align: -1px; }
.key.line { stroke: none; }
.key.line::before { height: 0; border-radius: 0; background: none; border-top: 2.5px solid var(--tone);
  vertical-align: 4px; width: 16px; }
.key.line.predicted::before { border-top-style: dashed; }
.actual { --tone: var(--blue); } .predicted { --tone: var(--violet); stroke-dasharray: 6 5; }
.range { --tone: var(--violet); opacity: 0.14; } .key.range { opacity: 1; } .key.range::before { opacity: 0.3; }
.prefill { --tone: var(--blue); } .decode { --tone: var(--amber); } .reused { --tone: var(--green); }
.kv { --tone: color-mix(in oklab, var(--violet) 60%, var(--card)); }
.kept { --tone: color-mix(in oklab, var(--green) 60%, var(--card)); }
.free { --tone: var(--grey6); opacity: 0.3; } .key.free { opacity: 1; } .key.free::before { opacity: 0.3; }
.running { --tone: var(--blue); } .waiting { --tone: var(--grey2); }
.optimal { --tone: var(--green); } .computing, .beyond { --tone: var(--amber); } .error { --tone: var(--red); }
.queueing { --tone: var(--blue); } .reading { --tone: var(--grey3); } .recording { --tone: var(--grey4); }
.committing { --tone: var(--grey1); } .exporting { --tone: var(--grey2); } .unknown { --tone: var(--grey6); }
.portions { position: relative; height: 34px; margin: 6px 0 16px; border-radius: 6px; overflow: hidden; }
.bars { list-style: none; margin: 0; padding: 0; }
.bars li { display: grid; grid-template-columns: 1fr auto; gap: 0 14px; padding: 6px 0; }
.bars .name { min-width: 0; overflow-wrap: anywhere; font-size: 15px; }
.bars .name small { color: var(--quiet); font-size: 13px; margin-left: 6px; }
.bars .number { text-align: right; font-size: 15px; white-space: nowrap; }
.bars .track { grid-column: 1 / -1; height: 6px; border-radius: 3px; background: var(--faint); overflow: hidden; }
.bars .track .fill { display: block; height: 100%; border-radius: 3px; min-width: 2px; }
.bars .note { grid-column: 1 / -1; color: var(--quiet); font-size: 13px; margin-top: 5px; overflow-wrap: anywhere; }
.spent { display: grid; grid-template-columns: 1fr 1fr; gap: 0 40px; }
.parts { list-style: none; margin: 0; padding: 0; columns: 2; column-gap: 44px; }
.parts li { display: grid; grid-template-columns: 11px 1fr auto; gap: 0 10px; padding: 5px 0; break-inside: avoid; }
.parts i { width: 11px; height: 11px; border-radius: 3px; background: var(--tone); margin-top: 7px; }
.parts small { display: block; color: var(--quiet); font-size: 13px; line-height: 1.35; }
.parts .number { text-align: right; white-space: nowrap; }
.tree .room { position: relative; height: 420px; margin: 6px 0 8px; background: var(--faint); border-radius: 6px;
  overflow: hidden; }
.tree figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 20px; }
.node { position: absolute; overflow: hidden; background: var(--tone); border: solid var(--card);
  border-width: 0 1px 1px 0; container-type: inline-size; color: var(--on-tone); }
.node.shared { --tone: var(--blue); }
.node.d1 { --tone: color-mix(in oklab, var(--blue) 82%, var(--card)); }
.node.d2 { --tone: color-mix(in oklab, var(--blue) 68%, var(--card)); }
.node.d3, .node.d4, .node.d5 { --tone: color-mix(in oklab, var(--blue) 56%, var(--card)); }
.node.own { --tone: var(--own); color: var(--ink); }
.node.thin { border-right-width: 0; }
.node.others { --tone: var(--grey6); color: var(--ink); }
.node span { display: block; padding: 3px 6px; font-size: 12px; line-height: 1.2; white-space: nowrap; }
.node .long { display: none; }
@container (min-width: 150px) { .node .long { display: block; } .node .short { display: none; } }
@container (max-width: 74px) { .node .short { display: none; } }
.node:hover { filter: brightness(1.1); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 7px 14px 7px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { color: var(--quiet); font-weight: 500; font-size: 13px; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
tr:last-child td { border-bottom: 0; }
footer { margin-top: 22px; color: var(--quiet); font-size: 13px; overflow-wrap: anywhere; }
footer p { margin: 4px 0; }
@media (max-width: 760px) {
  main { padding: 22px 14px 40px; }
  .cards { grid-template-columns: 1fr; gap: 12px; }
  section { padding: 16px 16px 18px; }
  .tiles { grid-template-columns: 1fr 1fr; margin: 20px 0 12px; }
  .tiles div { padding: 11px 14px; }
  .tiles dd { font-size: 19px; }
  .plot { height: 200px; margin-left: 40px; }
  .half .plot { flex-basis: 200px; }
  .parts { columns: 1; }
  .tree .room { height: 340px; }
  .node.small { border-right-width: 0; }
}
@media print { body { background: none; } section, .tiles { break-inside: avoid; } }
"""
