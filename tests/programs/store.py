"""Sums up numbers in a database, a transaction at a time, and says after each what it holds.
Arguments: the journal's mode, seconds between two transactions."""
import sqlite3
import sys
import time

store = sqlite3.connect("state.db")
store.execute(f"pragma journal_mode={sys.argv[1]}")
store.execute("create table if not exists numbers (number integer, square integer)")
for number in range(80):
    with store:
        store.execute("insert into numbers values (?, ?)", (number, number * number))
        store.execute("update numbers set square = square + 1 where number % 7 = ?", (number % 7,))
    total, rows = store.execute("select sum(square), count(*) from numbers").fetchone()
    print(number, rows, total, flush=True)
    time.sleep(float(sys.argv[2]))
print(store.execute("pragma integrity_check").fetchone()[0])
