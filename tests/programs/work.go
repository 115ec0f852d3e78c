// Goroutines that share work, timers, a pipe to a child, and a collector that runs now and then.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"
)

func work(number int) uint64 {
	kept := make([][]byte, 0, 64)
	value := uint64(number)
	for turn := 0; turn < 20000; turn++ {
		value = value*6364136223846793005 + 1442695040888963407
		if turn%500 == 0 {
			kept = append(kept, make([]byte, 4096))
		}
	}
	return value + uint64(len(kept))
}

func main() {
	child := exec.Command("cat")
	input, err := child.StdinPipe()
	if err != nil {
		panic(err)
	}
	output, err := child.StdoutPipe()
	if err != nil {
		panic(err)
	}
	if err := child.Start(); err != nil {
		panic(err)
	}
	file, err := os.Create("output.go")
	if err != nil {
		panic(err)
	}
	lines := bufio.NewScanner(output)
	for round := 0; round < 250; round++ {
		results := make([]uint64, 16)
		var group sync.WaitGroup
		for index := range results {
			group.Add(1)
			go func(index int) {
				defer group.Done()
				results[index] = work(round*16 + index)
			}(index)
		}
		group.Wait()
		select {
		case <-time.After(4 * time.Millisecond):
		}
		fmt.Fprintln(input, round, results)
		lines.Scan()
		fmt.Fprintln(file, lines.Text())
		if round%50 == 0 {
			runtime.GC()
		}
	}
	input.Close()
	if err := child.Wait(); err != nil {
		panic(err)
	}
}
