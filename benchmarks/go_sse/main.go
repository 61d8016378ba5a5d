// A server built with tmaxmax/go-sse as its README suggests: the zero Server, whose provider is Joe.
package main

import (
	"io"
	"log"
	"net/http"
	"os"

	"github.com/tmaxmax/go-sse"
)

func main() {
	server := &sse.Server{}

	http.HandleFunc("GET /events/", func(w http.ResponseWriter, r *http.Request) {
		// The library sends the headers with the first event. A client would not know until then that its stream is open.
		w.Header().Set("Content-Type", "text/event-stream")
		if err := http.NewResponseController(w).Flush(); err != nil {
			log.Println(err)
			return
		}
		server.ServeHTTP(w, r)
	})

	http.HandleFunc("POST /emit/", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		message := &sse.Message{}
		message.AppendData(string(body))
		if err := server.Publish(message); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})

	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
