"""How pages that are printed on A4 look, whatever they tell."""

PAPER = """
@page { size: A4; margin: 15mm; @bottom-right { content: counter(page) " / " counter(pages); font-size: 8pt; } }
:root { color: #1c1c1c; font: 10.5pt/1.4 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
body { max-width: 180mm; margin: 0 auto; padding: 6mm 0; }
h1 { font-size: 20pt; margin: 0 0 1mm; }
h2 { font-size: 13pt; margin: 7mm 0 2mm; padding-bottom: 0.8mm; border-bottom: 0.4mm solid #1f5fa8; }
h2, h3 { break-after: avoid; }
h3 { font-size: 10.5pt; margin: 3mm 0 1mm; }
p { margin: 0 0 2mm; }
.by, .small { color: #555; font-size: 9pt; }
.short { background: #eef3fa; border-radius: 2mm; padding: 3mm 4mm; break-inside: avoid; }
.short h2 { margin-top: 0; border: 0; }
.short p:last-child, .short ul:last-child { margin-bottom: 0; }
ul { margin: 0 0 2mm; padding-left: 5mm; }
table { border-collapse: collapse; width: 100%; font-size: 9pt; margin-bottom: 2mm; }
th { text-align: left; font-weight: 600; }
th, td { padding: 0.6mm 2mm 0.6mm 0; border-bottom: 0.2mm solid #ddd; vertical-align: top; }
tr { break-inside: avoid; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
@media screen {
  html { background: #f4f4f4; }
  body { background: #fff; padding: 8mm; box-shadow: 0 0 6mm #0002; }
}
"""
