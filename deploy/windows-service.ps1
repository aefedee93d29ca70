# Windows service around the program, by NSSM (https://nssm.cc), from an elevated PowerShell in the project's root:
#   .\deploy\windows-service.ps1 -Weights D:\weights\dinov2_vits14_pretrain.pth
# Remove it with: nssm stop Inspection; nssm remove Inspection confirm

param(
    [string]$Name = "Inspection",
    [string]$Root = (Resolve-Path "$PSScriptRoot\..").Path,
    [string]$Data = "$env:ProgramData\Inspection",
    [string]$Weights = "auto",
    [string]$Account = "NT AUTHORITY\LocalService"
)
$ErrorActionPreference = "Stop"
$python = Join-Path $Root ".venv\Scripts\python.exe"
if (-not (Test-Path $python)) { throw "There is no $python : run .\tasks.ps1 run once, or make the venv as docs\DEPLOYMENT.md says." }
if (-not (Get-Command nssm -ErrorAction SilentlyContinue)) { throw "nssm.exe is not on the PATH: get it from https://nssm.cc." }

foreach ($folder in "$Data", "$Data\models", "$Data\datasets", "$Data\records", "$Data\logs") { New-Item -ItemType Directory -Force $folder | Out-Null }
icacls $Data /grant "${Account}:(OI)(CI)M" | Out-Null

nssm install $Name $python "-m" "backend" "serve"
nssm set $Name AppDirectory $Root
nssm set $Name ObjectName $Account
nssm set $Name AppEnvironmentExtra "MODELS_DIR=$Data\models" "DATASETS_DIR=$Data\datasets" "RESULTS_DB=sqlite:///$($Data -replace '\\', '/')/records/inspections.db" "WEIGHTS=$Weights" "HF_HUB_OFFLINE=1" "REQUIRE_PRETRAINED=1" "PYTHONUTF8=1"
nssm set $Name AppStderr "$Data\logs\inspection.log"
nssm set $Name AppRotateFiles 1
nssm set $Name AppRotateBytes 10485760
nssm set $Name AppStopMethodConsole 35000
nssm set $Name AppExit Default Restart
nssm set $Name AppRestartDelay 2000
nssm set $Name Start SERVICE_AUTO_START
nssm start $Name
