// ttrpc-peer speaks zeropod.shim.v1.Shim by Go's own ttrpc, the implementation
// that real shims and managers are built with, so that ours can be held
// against it.
//
//	ttrpc-peer PROTO serve SOCKET
//	ttrpc-peer PROTO metrics|subscribe SOCKET
//	ttrpc-peer PROTO status SOCKET ID
//
// PROTO is the path of shim.proto. Messages are printed as JSON, one a line;
// what ends a call as "end" or "error CODE MESSAGE".
//
// The server says "serving", then takes lines from its standard input: a
// ContainerStatus as JSON goes to the subscriber, "end" ends the subscription
// cleanly, "fail" by an error. It knows one container, with the id "c0ffee".
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/bufbuild/protocompile"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

const (
	service = "zeropod.shim.v1.Shim"
	usage   = "usage: ttrpc-peer PROTO serve|metrics|subscribe|status SOCKET [ID]"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "ttrpc-peer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 1 && args[0] == "-h" {
		fmt.Println(usage)
		return nil
	}
	if len(args) < 3 {
		return errors.New(usage)
	}
	messages, err := load(args[0])
	if err != nil {
		return err
	}
	switch args[1] {
	case "serve":
		return serve(args[2], messages)
	case "metrics", "subscribe":
		return call(args[1], args[2], "", messages)
	case "status":
		if len(args) != 4 {
			return errors.New("status takes a socket and an id")
		}
		return call(args[1], args[2], args[3], messages)
	}
	return fmt.Errorf("unknown command %q", args[1])
}

// schema makes messages by name.
type schema struct{ file protoreflect.FileDescriptor }

func load(path string) (schema, error) {
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{}),
	}
	files, err := compiler.Compile(context.Background(), path)
	if err != nil {
		return schema{}, err
	}
	return schema{files[0]}, nil
}

func (s schema) message(name protoreflect.Name) *dynamicpb.Message {
	return dynamicpb.NewMessage(s.file.Messages().ByName(name))
}

func (s schema) fromJSON(name protoreflect.Name, text string) (proto.Message, error) {
	message := s.message(name)
	return message, protojson.Unmarshal([]byte(text), message)
}

// request has field 1 set, as the Go manager sets it.
func (s schema) request(name protoreflect.Name) proto.Message {
	message := s.message(name)
	field := message.Descriptor().Fields().ByNumber(1)
	message.Set(field, message.NewField(field))
	return message
}

func serve(socket string, messages schema) error {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	lines := make(chan string)
	server.RegisterService(service, &ttrpc.ServiceDesc{
		Methods: map[string]ttrpc.Method{
			"Metrics": func(_ context.Context, unmarshal func(any) error) (any, error) {
				if err := unmarshal(messages.message("MetricsRequest")); err != nil {
					return nil, err
				}
				return messages.fromJSON("MetricsResponse",
					`{"metrics":[{"name":"app","podName":"web","podNamespace":"default","running":true}]}`)
			},
			"GetStatus": func(_ context.Context, unmarshal func(any) error) (any, error) {
				request := messages.message("ContainerRequest")
				if err := unmarshal(request); err != nil {
					return nil, err
				}
				id := request.Get(request.Descriptor().Fields().ByName("id")).String()
				if id != "c0ffee" {
					return nil, fmt.Errorf("could not find zeropod container with id: %s", id)
				}
				return messages.fromJSON("ContainerStatus",
					`{"id":"c0ffee","name":"app","podName":"web","podNamespace":"default","phase":"RUNNING"}`)
			},
		},
		Streams: map[string]ttrpc.Stream{
			"SubscribeStatus": {
				StreamingServer: true,
				Handler: func(ctx context.Context, stream ttrpc.StreamServer) (any, error) {
					if err := stream.RecvMsg(messages.message("SubscribeStatusRequest")); err != nil {
						return nil, err
					}
					return nil, send(ctx, stream, lines, messages)
				},
			},
		},
	})
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(context.Background(), listener) }()
	fmt.Println("serving")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		select {
		case lines <- input.Text():
		case err := <-failed:
			return err
		}
	}
	return input.Err()
}

func send(
	ctx context.Context, stream ttrpc.StreamServer, lines <-chan string, messages schema,
) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case line := <-lines:
			switch line {
			case "end":
				return nil
			case "fail":
				return errors.New("broken")
			}
			event, err := messages.fromJSON("ContainerStatus", line)
			if err != nil {
				return err
			}
			if err := stream.SendMsg(event); err != nil {
				return err
			}
		}
	}
}

func call(command, socket, id string, messages schema) error {
	connection, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(connection)
	defer client.Close()
	ctx := context.Background()
	switch command {
	case "metrics":
		answer := messages.message("MetricsResponse")
		report(answer, client.Call(ctx, service, "Metrics", messages.request("MetricsRequest"), answer))
	case "status":
		request := messages.message("ContainerRequest")
		request.Set(request.Descriptor().Fields().ByName("id"), protoreflect.ValueOfString(id))
		answer := messages.message("ContainerStatus")
		report(answer, client.Call(ctx, service, "GetStatus", request, answer))
	case "subscribe":
		stream, err := client.NewStream(ctx, &ttrpc.StreamDesc{StreamingServer: true},
			service, "SubscribeStatus", messages.request("SubscribeStatusRequest"))
		if err != nil {
			return err
		}
		for {
			event := messages.message("ContainerStatus")
			err := stream.RecvMsg(event)
			report(event, err)
			if err != nil {
				return nil
			}
		}
	}
	return nil
}

func report(message proto.Message, err error) {
	if errors.Is(err, io.EOF) {
		fmt.Println("end")
		return
	}
	if err != nil {
		found := status.Convert(err)
		fmt.Println("error", found.Code(), found.Message())
		return
	}
	text, err := protojson.Marshal(message)
	if err != nil {
		fmt.Println("error", err)
		return
	}
	fmt.Println(string(text))
}
